"""Sample with vLLM, score with Megatron, compare: the run behind `routereplay parity`.

Everything that is compared lies in one row of N tokens, the trajectories one after the
other and the samplings one after the other, so that a figure for one sampling is a slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routereplay.client import Trajectory, stitch
from routereplay.parity.column_names import (
    DENSE_SCORES,
    ENGINE_AGAIN,
    MEGATRON_AGAIN,
    REPLAY_OFF,
    REPLAY_ON,
)
from routereplay.parity.comparison import Mismatch, compare_scored
from routereplay.parity.hf_config import DecoderShape
from routereplay.parity.megatron_job import Job, Pass, run_job
from routereplay.parity.packed_rows import PackedRow, pack_rows
from routereplay.parity.sampling import Sampling
from routereplay.parity.scored import Scored
from routereplay.parity.topology import Topology


class Measured:
    """What all engines said of the same tokens; Megatron speaks once `score` was called."""

    def __init__(self, samplings: Sequence[Sampling], shape: DecoderShape) -> None:
        self.samplings = list(samplings)
        self._model = shape.routes
        self._together = not any(shape.linear_layers)
        self._trajectories = [one for sampling in samplings for one in sampling.trajectories]
        again = [one for sampling in samplings for one in sampling.trajectories_rescored]
        rollouts = [rollout for sampling in samplings for rollout in sampling.rollouts]
        self._tokens = [rollout.token_ids for rollout in rollouts]
        self._trained = [rollout.sampled.positions for rollout in rollouts]
        self.bounds = np.cumsum([0, *(sampling.num_tokens for sampling in samplings)])
        """`[samplings + 1]`: where each sampling's tokens begin."""
        self.sampled = Scored.of_engine(
            [rollout.sampled for rollout in rollouts], self._routes(self._trajectories)
        )
        """The engine, while it sampled: what everything else is compared with."""
        rescored = [one for sampling in samplings for one in sampling.rescored]
        self.passes = {ENGINE_AGAIN: Scored.of_engine(rescored, self._routes(again))}
        """By the names of the table's columns; a later topology's have its name behind them."""
        self._covered = {ENGINE_AGAIN: len(self.samplings)}
        self.stages: dict[str, dict[str, float]] = {}
        """By topology, the seconds after which Megatron's rank 0 had reached each stage."""

    def score(
        self,
        topology: Topology,
        *,
        checkpoint: str,
        device: str,
        dtype: str,
        row_tokens: int = 0,
        samplings: int = 0,
        timeout_s: float = 600.0,
    ) -> None:
        """Score with Megatron what was sampled: live, replayed, and live in another packing.

        Args:
            device: `cpu` or `cuda`.
            dtype: of Megatron's parameters and arithmetic, by its name in torch.
            row_tokens: length of a packed row; 0 for four times the longest trajectory.
            samplings: how many of them to score, from the first; 0 for all.

        Raises:
            MisalignedRoutes, MissingRoutes, InvalidRoutes: the routes do not fit the tokens.
            EngineFailed: Megatron ended with an error, or the time is up.
        """
        covered = samplings or len(self.samplings)
        count = sum(len(one.rollouts) for one in self.samplings[:covered])
        longest = max(map(len, self._tokens))
        length = max(row_tokens or 4 * longest, longest)
        # Sequence parallelism divides a row; the second packing has other lengths and neighbours.
        step = 8 * topology.tp
        rows = self._rows(count, _multiple(length, step))
        others = self._rows(count, _multiple(max(longest, 3 * length // 4), step), backwards=True)
        job = Job(
            *(checkpoint, device, dtype, topology.tp, topology.pp, topology.ep),
            canary_every=1,
            timeout_s=timeout_s,
            passes=[
                *(Pass(name, name == REPLAY_ON, list(range(len(rows)))) for name in self._main),
                Pass(MEGATRON_AGAIN, False, list(range(len(rows), len(rows) + len(others)))),
            ],
        )
        found, stages = run_job(job, [*rows, *others], int(self.bounds[-1]))
        self.stages[str(topology)] = stages
        behind = f" {topology}" if self._main[0] in self.passes else ""
        self.passes |= {name + behind: scored for name, scored in found.items()}
        self._covered |= dict.fromkeys((name + behind for name in found), covered)

    def columns(self, sampling: int | None = None) -> dict[str, Mismatch]:
        """Return the table, over all samplings that a column covers or of one."""
        found = {}
        for name, scored in self.passes.items():
            covered = self._covered[name]
            if sampling is not None and sampling >= covered:
                continue
            start, stop = (0, covered) if sampling is None else (sampling, sampling + 1)
            span = int(self.bounds[start]), int(self.bounds[stop])
            found[name] = compare_scored(scored.between(*span), self._target(name).between(*span))
        return found

    def _rows(self, count: int, row_tokens: int, *, backwards: bool = False) -> list[PackedRow]:
        return pack_rows(
            *(self._trajectories[:count], self._tokens[:count], self._trained[:count]),
            *(self._model, row_tokens),
            backwards=backwards,
            together=self._together,
        )

    @property
    def _main(self) -> tuple[str, ...]:
        """The passes over the first packing; the first of them is live."""
        return (DENSE_SCORES,) if self._model is None else (REPLAY_OFF, REPLAY_ON)

    def _routes(self, trajectories: Sequence[Trajectory]) -> list[tuple[np.ndarray, np.ndarray]]:
        if self._model is None:
            counts = [len(tokens) for tokens in self._tokens]
            return [(np.zeros((count, 0, 0), np.int64), np.zeros(count, bool)) for count in counts]
        stitched = [stitch(one, row) for one, row in zip(trajectories, self._tokens, strict=True)]
        return [(routes.experts, ~routes.missing) for routes in stitched]

    def _target(self, name: str) -> Scored:
        if not name.startswith(MEGATRON_AGAIN):
            return self.sampled
        live = self.passes[self._main[0] + name.removeprefix(MEGATRON_AGAIN)]
        return _only(live, self.sampled)


def _only(scored: Scored, where: Scored) -> Scored:
    """Return `scored` with log-probs where `where` has some, and nowhere else."""
    logprobs = np.where(np.isnan(where.logprobs), np.nan, scored.logprobs)
    return Scored(logprobs, scored.top, scored.experts, scored.routed)


def _multiple(value: int, step: int) -> int:
    return -(-value // step) * step
