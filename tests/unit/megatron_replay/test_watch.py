"""The numbers of a step, from its report alone, and the loggers that they go to."""

import numpy as np
import pytest

pytest.importorskip("megatron.core")
pytest.importorskip("prometheus_client")

import torch
from prometheus_client import CollectorRegistry, generate_latest

from routereplay.client.packed import PackedRoutes
from routereplay.patches.megatron import (
    CanaryReading,
    PrometheusLogger,
    ReplayWatch,
    RouteOrigins,
    RowCounts,
    StepReport,
    tensorboard_logger,
)
from routereplay.patches.replay.origins import origins_of
from routereplay.patches.replay.ratios import LogRatios, RatioMeter, ratio_numbers

pytestmark = pytest.mark.megatron


def report(rows=(90, 10, 4), missing=3, versions=None, canary=()):
    recorded, live, _ = rows
    return StepReport(
        microbatches=2,
        router_calls=6,
        recomputes=0,
        rows=RowCounts(*rows),
        origins=RouteOrigins(recorded, live, missing, versions or {}),
        prefetched=0,
        canary=tuple(canary),
    )


def reading(overlap, rows=100):
    return CanaryReading(1, 2, rows, overlap, 0.1, {}, overlap - 0.05)


def numbers_of(*args, **fields):
    return ReplayWatch(prefix="").finish(*args, **({"step": 1} | fields))


def packed(missing=None, policy=None, versions=()):
    live = np.array([False, False, True, True, False, False])
    padding = np.array([False, False, False, False, False, True])
    experts = np.zeros((6, 1, 2), np.uint8)
    return PackedRoutes(
        experts, live, padding, 8, missing=missing, policy=policy, policy_versions=versions
    )


def test_what_was_not_measured_has_no_number():
    numbers = numbers_of(report(rows=(0, 0, 0), missing=0))
    assert set(numbers) == {"rows_replayed", "rows_live", "rows_padding", "rows_missing"}


def test_ages_are_those_of_the_rows_and_versions_without_a_number_are_unknown():
    numbers = numbers_of(report(versions={"7": 30, "9": 30, "base": 15}), policy_version=10)
    assert numbers["age_mean"] == pytest.approx((30 * 3 + 30) / 60)
    assert numbers["age_max"] == 3
    assert numbers["age_unknown_share"] == pytest.approx(30 / 90)


def test_a_version_that_is_no_number_is_of_age_zero_when_it_is_the_same():
    numbers = numbers_of(report(versions={"a3f": 90}), policy_version="a3f")
    assert (numbers["age_max"], numbers["age_unknown_share"]) == (0, 0)


def test_a_route_from_a_policy_that_is_not_trained_yet_shows():
    assert numbers_of(report(versions={"12": 90}), policy_version=10)["age_min"] == -2


def test_overlap_is_the_mean_over_rows_and_the_worst_stretch():
    numbers = numbers_of(report(canary=[reading(0.9, 300), reading(0.5, 100)]))
    assert numbers["overlap"] == pytest.approx(0.8)
    assert numbers["overlap_worst"] == pytest.approx(0.45)


def test_log_probs_of_a_mask_alone_count_and_are_used_up():
    watch = ReplayWatch(prefix="")
    nan = float("nan")
    watch.logprobs(
        torch.tensor([[-1.0, -2.0, nan]]),
        torch.tensor([[-1.5, -2.0, -1.0]]),
        torch.tensor([[True, True, False]]),
    )
    numbers = watch.finish(report(), step=1)
    assert numbers["logprob_tokens"] == 2
    assert numbers["ratio_max"] == pytest.approx(np.exp(0.5))
    assert numbers["logprob_error"] == pytest.approx(0.25)
    assert "logprob_tokens" not in watch.finish(report(), step=2)


def test_log_probs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\), \(3,\)"):
        ReplayWatch().logprobs(torch.zeros(2), torch.zeros(3))


@pytest.mark.parametrize("sizes", [(5000,), (40, 4000), (200_000, 150_000)])
def test_quantiles_over_ranks_are_those_of_all_tokens(sizes):
    generator = np.random.default_rng(0)
    ranks = [generator.normal(0, 0.2, size).astype(np.float32) for size in sizes]
    every = np.exp(np.concatenate(ranks).astype(np.float64))

    numbers = ratio_numbers([LogRatios.of(rank) for rank in ranks])

    for name, share in (("ratio_p01", 0.01), ("ratio_p50", 0.5), ("ratio_p99", 0.99)):
        assert numbers[name] == pytest.approx(np.quantile(every, share), rel=0.01)
    assert numbers["ratio_min"] == pytest.approx(every.min())
    assert numbers["logprob_tokens"] == sum(sizes)


def test_bfloat16_and_integer_masks_are_taken():
    meter = RatioMeter()
    trained = torch.tensor([-1.0, -3.0]).bfloat16()
    meter.add(trained, torch.tensor([-1.0, -2.0]), torch.tensor([0, 1]))
    assert meter.take().samples.tolist() == [-1.0]


def test_rows_are_counted_by_origin_and_of_a_rank_only_its_own():
    missing = np.array([False, False, True, False, False, False])
    policy = np.array([0, 1, -1, -1, -1, -1], np.int32)
    batch = packed(missing, policy, ("7", "9"))
    assert origins_of(batch, None) == RouteOrigins(3, 2, 1, {"7": 1, "9": 1})
    assert origins_of(batch, np.array([1, 3])) == RouteOrigins(1, 1, 0, {"9": 1})
    assert origins_of(packed(), None) == RouteOrigins(3, 2, 0, {})


def test_a_step_without_a_report_is_refused():
    with pytest.raises(ValueError, match="no report"):
        ReplayWatch().finish(None, step=1)


def test_every_logger_gets_the_numbers_and_the_step():
    seen, curve = [], {}

    class Writer:
        def add_scalar(self, name, value, step):
            curve[name, step] = value

    watch = ReplayWatch([lambda *given: seen.append(given), tensorboard_logger(Writer())])
    numbers = watch.finish(report(), step=7)
    assert seen == [(numbers, 7)]
    assert curve == {(name, 7): value for name, value in numbers.items()}


def test_tensorboard_reads_the_curves_back(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        watch = ReplayWatch([tensorboard_logger(writer)])
        first, second = (watch.finish(report(), step=step) for step in (3, 4))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    curves = {
        name: [(one.step, one.value) for one in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    assert curves.keys() == first.keys()
    for name, curve in curves.items():
        assert curve == [(3, pytest.approx(first[name])), (4, pytest.approx(second[name]))]


def test_prometheus_counts_rows_and_shows_the_last_step_only():
    registry = CollectorRegistry()
    watch = ReplayWatch([PrometheusLogger(registry)])
    watch.finish(report(canary=[reading(0.9)]), step=1)
    watch.finish(report(), step=2)
    text = generate_latest(registry).decode()
    assert 'routereplay_training_rows_total{kind="replayed"} 180.0' in text
    assert 'routereplay_training_rows_total{kind="missing"} 6.0' in text
    assert "routereplay_training_steps_total 2.0" in text
    assert 'routereplay_training_last_step{name="replayed_share"} 0.9' in text
    assert 'name="overlap"' not in text
