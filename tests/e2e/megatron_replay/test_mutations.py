"""Every way of being wrong that trainers have found, and which check catches it.

| mutation | caught by |
|---|---|
| last row of the batch missing | `begin_microbatch`: row ids reach past the routes |
| last row of a request missing | `pack_thd`: a token without a route that is not the last |
| trajectories swapped before packing | `pack_thd`: token ids differ |
| one expert twice, padding of zeros, ids past the experts | rows counted as they are staged |
| rows in another shape, too few, too many | the pre-hook of every router (test_misuse.py) |
| a microbatch skipped, run twice, never recomputed | accounting of the step (test_misuse.py) |
| rows of the token before or after | live against replayed choice: a canary |
| two layers swapped | the same |
| trajectories swapped after packing | the same |
| rows position-major, `[s, b]` for `[b, s]` | the same |
| routes of another microbatch | the same |
| rows of another context rank | the same (test_layouts.py, two processes) |
| zigzag of the whole row, not of each sequence | the same (test_layouts.py, two processes) |
| stale routes at recompute | gradients only (test_replay.py): the code is held to it there |
| recompute in another order than forward | gradients only: the code is held to it here |

A trainer can make every mistake but the last two, which would be ours. The valid but
wrong routes move a loss by less than a thousandth and gradients by more than their own
size: who compares losses sees none of them. `mutations.SILENT` and
`mutations.pair_for_canary` are there for the test of a canary.
"""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.slow]

LOUD = [
    ("last_row_of_the_batch_missing", "ReplayMismatch", "rows 0 to 22"),
    ("last_row_of_a_request_missing", "MissingRoutes", "position 7"),
    ("trajectories_swapped_before_packing", "MisalignedRoutes", "position 0"),
    ("one_expert_twice", "ReplayMismatch", "1 rows"),
    ("padding_of_zeros", "ReplayMismatch", "12 rows"),
    ("padding_past_the_experts", "ReplayMismatch", "12 rows"),
]
SILENT = [
    "rows_of_the_token_before",
    "rows_of_the_token_after",
    "two_layers_swapped",
    "trajectories_swapped",
    "position_major",
    "routes_of_another_microbatch",
]


@pytest.mark.parametrize(("mutation", "error", "words"), LOUD, ids=[name for name, *_ in LOUD])
def test_a_mutation_that_breaks_a_rule_raises(megatron, mutation, error, words):
    raised = megatron.run("mutations.error_of", mutation=mutation)
    assert raised is not None, f"{mutation} passed in silence"
    assert raised["type"] == error, raised["message"]
    assert words in raised["message"]


@pytest.mark.parametrize("mutation", SILENT)
def test_valid_routes_of_other_rows_show_in_gradients_and_hardly_in_losses(megatron, mutation):
    facts = megatron.run("mutations.effect_of", mutation=mutation)
    assert facts["loss_difference"] < 1e-3
    assert facts["gradient_difference"] > 1.0


def test_recompute_in_another_order_shows_in_gradients_only(megatron):
    facts = megatron.run("mutations.recompute_in_another_order")
    assert facts["losses_equal"]
    assert facts["gradient_difference"] > 1.0
