"""`ReplayWatch` on a real model: rows, age, overlap and ratios of each step."""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.slow]


@pytest.fixture(scope="module")
def steps(megatron):
    return megatron.run("watched.numbers_of_steps")


def test_each_step_has_its_rows_and_the_age_of_their_routes(steps):
    (first, numbers), (second, later) = steps["seen"]
    assert (first, second) == (10, 11)
    assert steps["same"]
    # Of 24 tokens two are the last of a sequence, which never has a route, and three lost theirs.
    rows = {
        "rows_replayed": 19,
        "rows_live": 5,
        "rows_missing": 3,
        "rows_padding": 0,
        "replayed_share": 19 / 24,
        "live_share": 5 / 24,
        "missing_share": 3 / 24,
    }
    assert {name: numbers[f"routereplay/{name}"] for name in rows} == rows
    # Five rows are of policy 7, fourteen of policy 9.
    ages = {"age_mean": (5 * 3 + 14) / 19, "age_min": 1, "age_max": 3, "age_unknown_share": 0}
    assert {name: numbers[f"routereplay/{name}"] for name in ages} == pytest.approx(ages)
    assert later["routereplay/age_max"] == 4


def test_overlap_is_whole_until_the_router_moves(steps):
    (_, numbers), (_, later) = steps["seen"]
    assert numbers["routereplay/overlap"] == 1.0
    assert 0.0 < numbers["routereplay/overlap_of_chance"] < 0.8
    assert later["routereplay/overlap"] <= 1.0


def test_ratios_are_one_on_policy_and_spread_after_an_update(steps):
    (_, numbers), (_, later) = steps["seen"]
    assert {numbers[f"routereplay/ratio_{of}"] for of in ("min", "p01", "p50", "p99", "max")} == {1}
    assert numbers["routereplay/logprob_error"] == numbers["routereplay/logprob_kl"] == 0.0
    assert numbers["routereplay/logprob_tokens"] == 2 * (12 - 4)
    found = {name: later[f"routereplay/{name}"] for name in steps["expected"]}
    assert found == pytest.approx(steps["expected"], rel=1e-5)
    assert 1.0 < later["routereplay/ratio_min"] < later["routereplay/ratio_max"]
