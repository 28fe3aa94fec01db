"""Staging ahead changes when routes are copied, and nothing else."""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.slow]


def test_microbatches_staged_ahead_train_bit_for_bit_the_same(megatron):
    facts = megatron.run("ahead.is_the_same")
    assert facts["losses_equal"]
    assert facts["gradient_difference"] == 0.0
    assert facts["prefetched"] == [[0, 0], [6, 6]]


def test_a_microbatch_that_was_not_staged_may_begin_before_one_that_was(megatron):
    assert megatron.run("ahead.other_batches_may_come_first") == {
        "equal": True,
        "prefetched": [0, 1],
    }


def test_a_failed_step_drops_what_was_staged(megatron):
    assert megatron.run("ahead.a_failed_step_drops_them") == 0


def test_rows_that_are_not_there_are_refused_when_the_microbatch_begins(megatron):
    assert megatron.run("ahead.rows_that_are_not_there") == "refused"


def test_staging_without_ever_beginning_is_refused(megatron):
    assert megatron.run("ahead.without_end") == {"count": 16, "code": "replay_state"}
