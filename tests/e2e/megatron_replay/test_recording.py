"""R2: the trainer's own routes, recorded in one pass and replayed in the next."""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.slow]


@pytest.mark.parametrize("recompute", [None, "full", "moe"])
def test_an_update_that_replays_its_own_recorded_pass_is_the_live_run(megatron, recompute):
    facts = megatron.run("watched.own_routes", recompute=recompute, drift=False)
    assert facts["recorded"] == [1, 1, [24, 3, 2]]
    assert facts["recorded_equal"]
    assert facts["rows_of_recording"] == [0, 24, 0]
    assert facts["rows_of_update"] == [24, 0, 0]
    assert facts["overlap_of_recording"] == []
    assert facts["overlap_of_update"] == [1.0, 1.0, 1.0]  # Each layer, in a first step.
    assert facts["losses_equal"]
    assert facts["gradient_difference"] == 0.0


@pytest.mark.parametrize("recompute", [None, "full"])
def test_routers_that_moved_since_execute_what_was_recorded(megatron, recompute):
    facts = megatron.run("watched.own_routes", recompute=recompute, drift=True)
    assert facts["executed_equal"]
    assert facts["overlap_of_update"][0] < 1.0


def test_live_rows_of_a_replayed_step_are_recorded_beside_the_replayed_ones(megatron):
    assert megatron.run("watched.mixed_recording") == {
        "given_rows_kept": True,
        "live_rows_are_others": True,
        "losses_equal": True,
        "gradient_difference": 0.0,
    }


def test_padding_rows_keep_their_balanced_experts(megatron):
    assert megatron.run("watched.wholly_recorded_with_padding") == {
        "rows": [[0, 19, 5], [19, 0, 5]],
        "padding_kept": True,
    }


def test_what_this_rank_did_not_execute_cannot_be_replayed(megatron):
    assert megatron.run("watched.recordings_that_cannot_be_replayed") == {
        "dtype": "uint8",
        "other_rows": "replay_mismatch",
        "other_microbatch": "refused",
        "failed_step_is_not_kept": True,
        "256": ["uint16", True],
        "300": ["uint16", True],
    }
