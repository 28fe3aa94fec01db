"""`ReplayWatch`: a step of replayed training as numbers, for whatever draws curves.

watch = ReplayWatch([wandb.log, tensorboard_logger(writer), PrometheusLogger()])
with replay.step():
    forward_backward_func(...)      # loss_func may call watch.logprobs(trained, sampled, mask)
numbers = watch.finish(replay.last_step, step=iteration, policy_version=iteration)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from routereplay.patches.replay.ratios import LogRatios, RatioMeter, ratio_numbers
from routereplay.patches.replay.report import StepReport

Logger: TypeAlias = Callable[[Mapping[str, float], int], object]
"""Takes the numbers of a step and the step: `wandb.log` and `mlflow.log_metrics` do."""


@dataclass(frozen=True)
class _Rank:
    """What one rank adds to the numbers of a step."""

    report: StepReport
    ratios: LogRatios


class ReplayWatch:
    """Turns the report of each step into numbers and hands them to loggers.

    Args:
        loggers: called with the numbers and the step, in order. What they raise is not
            caught.
        group: ranks that hold different rows, over which the numbers are summed up; every
            rank of it calls `finish`. With it, all of them have the same numbers. In
            Megatron: `parallel_state.get_tensor_and_data_parallel_group(
            with_context_parallel=True)` with sequence parallelism, else
            `get_data_parallel_group(with_context_parallel=True)`.
        prefix: goes before each name.
    """

    def __init__(
        self, loggers: Iterable[Logger] = (), *, group: Any = None, prefix: str = "routereplay/"
    ) -> None:
        self._loggers = tuple(loggers)
        self._group = group
        self._prefix = prefix
        self._ratios = RatioMeter()
        self.numbers: dict[str, float] = {}
        """Of the last step."""

    def logprobs(
        self, trained: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor | None = None
    ) -> None:
        """Add the log-probs of a microbatch; nothing waits for the device.

        Args:
            trained: by the model that is trained, any shape.
            sampled: by the engine, of the same tokens.
            mask: True where a token counts, the tokens that were sampled; by default all.

        Raises:
            ValueError: the shapes differ.
        """
        self._ratios.add(trained, sampled, mask)

    def finish(
        self, report: StepReport | None, *, step: int, policy_version: int | str | None = None
    ) -> dict[str, float]:
        """Return the numbers of a step, by name, and hand them to the loggers.

        What was not measured has no number. docs/watching.md lists them all.

        Args:
            report: `replay.last_step`.
            step: the trainer's own count, for the loggers.
            policy_version: of the weights that are trained now, as the engine would call
                them; without it routes have no age.

        Raises:
            ValueError: no step has ended yet.
        """
        if report is None:
            msg = "there is no report: finish() comes after a step that ended whole"
            raise ValueError(msg)
        ranks = self._gather(_Rank(report, self._ratios.take()))
        numbers = _row_numbers(ranks) | _overlap_numbers(ranks)
        if policy_version is not None:
            numbers |= _age_numbers(ranks, str(policy_version))
        numbers |= ratio_numbers([rank.ratios for rank in ranks])
        self.numbers = {f"{self._prefix}{name}": value for name, value in numbers.items()}
        for logger in self._loggers:
            logger(self.numbers, step)
        return self.numbers

    def _gather(self, own: _Rank) -> list[_Rank]:
        if self._group is None:
            return [own]
        ranks: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(ranks, own, group=self._group)
        return ranks


def tensorboard_logger(writer: Any) -> Logger:
    """Return a logger for a `SummaryWriter`, or anything else with `add_scalar`."""

    def log(numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return log


class PrometheusLogger:
    """Shows the numbers of the last step as Prometheus metrics; needs prometheus_client.

    Args:
        registry: by default prometheus_client's own.
        prefix: of `ReplayWatch`.
    """

    def __init__(self, registry: Any = None, *, prefix: str = "routereplay/") -> None:
        from prometheus_client import REGISTRY, Counter, Gauge

        self._prefix = prefix
        registry = REGISTRY if registry is None else registry
        self._rows = Counter(
            "routereplay_training_rows", "Trained rows by kind.", ["kind"], registry=registry
        )
        self._steps = Counter("routereplay_training_steps", "Steps watched.", registry=registry)
        self._last = Gauge(
            "routereplay_training_last_step",
            "Numbers of the last step, by name.",
            ["name"],
            registry=registry,
        )

    def __call__(self, numbers: Mapping[str, float], step: int) -> None:
        """Count the rows of a step and show its other numbers."""
        self._steps.inc()
        self._last.clear()  # What this step did not measure is not that of an older one.
        for full_name, value in numbers.items():
            name = full_name.removeprefix(self._prefix)
            if name.startswith("rows_"):
                self._rows.labels(name.removeprefix("rows_")).inc(value)
            else:
                self._last.labels(name).set(value)


def _row_numbers(ranks: Sequence[_Rank]) -> dict[str, float]:
    rows = [rank.report.rows for rank in ranks]
    origins = [rank.report.origins for rank in ranks]
    counts = {
        "replayed": sum(each.replayed for each in rows),
        "live": sum(each.live for each in rows),
        "padding": sum(each.padding for each in rows),
        "missing": sum(each.missing for each in origins),
    }
    numbers = {f"rows_{kind}": float(count) for kind, count in counts.items()}
    tokens = counts["replayed"] + counts["live"]
    seen = sum(each.recorded + each.live for each in origins)
    if tokens:
        numbers["replayed_share"] = counts["replayed"] / tokens
        numbers["live_share"] = counts["live"] / tokens
    if seen:
        numbers["missing_share"] = counts["missing"] / seen
    return numbers


def _overlap_numbers(ranks: Sequence[_Rank]) -> dict[str, float]:
    readings = [reading for rank in ranks for reading in rank.report.canary if reading.rows]
    if not readings:
        return {}
    rows = sum(reading.rows for reading in readings)
    return {
        "overlap": sum(reading.overlap * reading.rows for reading in readings) / rows,
        "overlap_worst": min(reading.worst for reading in readings),
        "overlap_of_chance": sum(reading.unrelated * reading.rows for reading in readings) / rows,
    }


def _age_numbers(ranks: Sequence[_Rank], current: str) -> dict[str, float]:
    ages: list[tuple[int, int]] = []
    recorded = sum(rank.report.origins.recorded for rank in ranks)
    for rank in ranks:
        for version, rows in rank.report.origins.policy_versions.items():
            age = _age(current, version)
            if age is not None:
                ages.append((age, rows))
    if not recorded:
        return {}
    known = sum(rows for _, rows in ages)
    numbers = {"age_unknown_share": 1 - known / recorded}
    if known:
        numbers["age_mean"] = sum(age * rows for age, rows in ages) / known
        numbers["age_min"] = float(min(age for age, _ in ages))
        numbers["age_max"] = float(max(age for age, _ in ages))
    return numbers


def _age(current: str, recorded: str) -> int | None:
    """Return how many versions `recorded` is behind; None if the two cannot be compared."""
    if current == recorded:
        return 0
    try:
        return int(current) - int(recorded)
    except ValueError:
        return None
