"""Stitching: which recorded row belongs to which trained token."""

import dataclasses

import msgspec
import numpy as np
import pytest
from support.trajectories import conversation, expected_rows, trajectory, turn

from routereplay.client import MisalignedRoutes, MissingRoutes, PoisonedRoutes, stitch
from routereplay.wire import TurnStatus
from routereplay.wire.errors import InvalidRoutes
from routereplay.wire.records import PolicySpan


def test_a_conversation_stitches_to_every_row_but_the_last():
    turns, tokens = conversation((5, 3), (2, 4), (3, 2))

    stitched = stitch(trajectory(*turns), tokens)

    last = len(tokens) - 1
    assert np.array_equal(stitched.experts[:last], expected_rows(tokens, 0, last))
    assert stitched.missing.tolist() == [False] * last + [True]
    assert stitched.source.tolist() == [0] * 7 + [1] * 6 + [2] * 5 + [-1]


def test_sampled_marks_exactly_the_completions():
    turns, tokens = conversation((5, 3), (2, 4))

    stitched = stitch(trajectory(*turns), tokens)

    assert np.flatnonzero(stitched.sampled).tolist() == [5, 6, 7, 10, 11, 12, 13]


def test_the_first_captured_row_wins_over_a_later_routing_of_the_same_prompt():
    turns, tokens = conversation((5, 3), (2, 4), salt_later=9)

    stitched = stitch(trajectory(*turns, only_new_rows=False), tokens)

    assert np.array_equal(stitched.experts[:7], expected_rows(tokens, 0, 7))
    assert np.array_equal(stitched.experts[7:13], expected_rows(tokens, 7, 13, salt=9))


def test_the_boundary_token_takes_its_row_from_the_next_turn():
    turns, tokens = conversation((5, 3), (2, 4))
    boundary = len(turns[0].token_ids) - 1

    stitched = stitch(trajectory(*turns), tokens)

    assert stitched.source[boundary] == 1


def test_without_token_ids_the_only_sequence_is_used():
    turns, tokens = conversation((5, 3), (2, 4))

    assert np.array_equal(stitch(trajectory(*turns)).token_ids, tokens)


def test_without_token_ids_two_choices_are_refused():
    a = turn([1, 2], [3, 4], choice=0)
    b = turn([1, 2], [5, 6], choice=1)

    with pytest.raises(MisalignedRoutes, match="holds 2 token sequences"):
        stitch(trajectory(a, b))


def test_each_choice_of_a_request_stitches_to_its_own_tokens():
    a = turn([1, 2], [3, 4], choice=0)
    b = turn([1, 2], [5, 6], choice=1)

    for tokens in ([1, 2, 3, 4], [1, 2, 5, 6]):
        stitched = stitch(trajectory(a, b), tokens)
        assert np.array_equal(stitched.experts[:3], expected_rows(tokens, 0, 3))


def test_a_trajectory_lists_one_sequence_for_each_leaf():
    first = turn([1, 2], [3, 4], request_id="r0")
    second = turn([1, 2, 3, 4, 9], [7], request_id="r1")
    rewritten = turn([1, 2, 8, 8], [7], request_id="r2")

    sequences = [s.tolist() for s in trajectory(first, second, rewritten).sequences()]

    assert sequences == [[1, 2, 3, 4, 9, 7], [1, 2, 8, 8, 7]]


def test_equal_turns_are_one_sequence():
    again = turn([1, 2], [3], request_id="r1")

    assert len(trajectory(turn([1, 2], [3], request_id="r0"), again).sequences()) == 1


def test_a_token_that_differs_names_trajectory_turn_and_position():
    turns, tokens = conversation((5, 3), (2, 4))
    edited = tokens.copy()
    edited[6] = 99

    with pytest.raises(MisalignedRoutes, match=r"episode-0: turn 0 .*position 6 .*99") as caught:
        stitch(trajectory(*turns), edited)
    assert caught.value.details["position"] == 6


def test_an_edited_history_is_misaligned_although_the_last_turn_covers_every_row():
    first = turn([1, 2], [3, 4], request_id="r0")
    second = turn([1, 2, 3, 9, 5], [6], request_id="r1")

    with pytest.raises(MisalignedRoutes, match="turn 0 .*diverges at position 3"):
        stitch(trajectory(first, second), second.token_ids)


def cut_conversation(**options):
    """A first turn of which the client was given `[1, 2, 3, 10, 11]`, and the next one."""
    first = turn([1, 2, 3], [10, 11, 12, 13], request_id="cmpl-0", **options)
    second = turn([1, 2, 3, 10, 11, 20, 21], [30, 31], request_id="cmpl-1")
    return trajectory(first, second), second.token_ids


def test_an_open_ended_turn_gives_its_rows_as_far_as_the_client_was_given_its_tokens():
    cut, tokens = cut_conversation(open_ended=True)
    trained = np.isin(tokens, [10, 11, 30, 31])
    stitched = stitch(cut, tokens, loss_mask=trained)

    assert stitched.source.tolist() == [0] * 5 + [1] * 3 + [-1]
    assert stitched.sampled.tolist() == trained.tolist()
    assert np.array_equal(stitched.experts[:-1], expected_rows(tokens, 0, 8))


def test_an_open_ended_last_turn_has_a_row_even_for_the_last_token():
    cut, tokens = cut_conversation(open_ended=True)
    alone = trajectory(cut.turns[0])
    stitched = stitch(alone, tokens[:5])

    assert not stitched.missing.any()


def test_a_turn_that_is_not_open_ended_may_not_be_cut():
    cut, tokens = cut_conversation()

    with pytest.raises(MisalignedRoutes, match="position 5 "):
        stitch(cut, tokens)


def test_a_trained_token_past_what_an_open_ended_turn_sampled_raises():
    cut, tokens = cut_conversation(open_ended=True)

    with pytest.raises(MissingRoutes, match="position 5 "):
        stitch(cut, tokens, loss_mask=np.isin(tokens, [20]))


def test_an_open_ended_turn_whose_prompt_differs_is_misaligned():
    cut, tokens = cut_conversation(open_ended=True)
    edited = np.array([1, 9, *tokens[2:]], np.int32)

    with pytest.raises(MisalignedRoutes, match="in its prompt"):
        stitch(trajectory(cut.turns[0], turn(edited[:7], edited[7:])), edited)


def test_branches_allow_accepts_an_edited_history():
    first = turn([1, 2], [3, 4], request_id="r0")
    second = turn([1, 2, 3, 9, 5], [6], request_id="r1")

    stitched = stitch(trajectory(first, second), second.token_ids, branches="allow")

    assert np.array_equal(stitched.experts[:5], expected_rows(second.token_ids, 0, 5))


def test_a_shifted_sequence_is_misaligned_at_its_first_token():
    turns, tokens = conversation((5, 3))

    with pytest.raises(MisalignedRoutes, match="position 0"):
        stitch(trajectory(*turns), np.roll(tokens, 1))


def test_tokens_past_the_last_recorded_turn_are_missing():
    turns, tokens = conversation((5, 3), (2, 4))

    with pytest.raises(MissingRoutes, match="no recorded turn has a row for position 7"):
        stitch(trajectory(turns[0]), tokens)


def test_missing_live_leaves_those_rows_to_the_router():
    turns, tokens = conversation((5, 3), (2, 4))

    stitched = stitch(trajectory(turns[0]), tokens, missing="live")

    assert np.flatnonzero(stitched.missing).tolist() == list(range(7, 14))
    assert stitched.coverage == pytest.approx(0.5)


def test_a_truncated_sequence_uses_the_rows_it_has():
    turns, tokens = conversation((5, 3), (2, 4))

    stitched = stitch(trajectory(*turns), tokens[:10])

    assert not stitched.missing.any()


@pytest.mark.parametrize(
    ("state", "words"), [("dropped", r"are gone .queue_full"), ("pending", "not sealed yet")]
)
def test_a_turn_without_routes_raises(state, words):
    turns, tokens = conversation((5, 3), (2, 4))
    lost = TurnStatus(
        request_id="chatcmpl-9",
        choice=0,
        state=state,
        reason="queue_full",
        engine_id="engine",
        ordinal=2,
        rows_lost=4,
    )

    with pytest.raises(MissingRoutes, match=words):
        stitch(trajectory(*turns, unsealed=[lost]), tokens)
    assert stitch(trajectory(*turns, unsealed=[lost]), tokens, missing="live").coverage > 0.9


def test_a_request_that_ended_before_its_first_token_is_no_loss():
    turns, tokens = conversation((5, 3), (2, 4))
    aborted = TurnStatus(request_id="x", choice=0, state="dropped", reason="aborted", ordinal=1)

    assert stitch(trajectory(*turns, unsealed=[aborted]), tokens).coverage > 0.9


def test_a_hole_in_an_engines_count_is_a_missing_turn():
    turns, tokens = conversation((5, 3), (2, 4), (1, 1))

    with pytest.raises(MissingRoutes, match="engine engine served a request number 1"):
        stitch(trajectory(turns[0], turns[2]), tokens)


def test_a_trained_token_that_nobody_sampled_raises():
    turns, tokens = conversation((5, 3), (2, 4))
    mask = np.zeros(len(tokens), bool)
    mask[5:8] = True

    stitch(trajectory(*turns), tokens, loss_mask=mask)
    mask[8] = True
    with pytest.raises(MissingRoutes, match="position 8 .* no recorded turn sampled it"):
        stitch(trajectory(*turns), tokens, loss_mask=mask)


def test_turns_from_two_models_are_refused():
    a = turn([1, 2], [3], request_id="r0")
    b = turn([1, 2, 3], [4], request_id="r1", experts=16)

    with pytest.raises(InvalidRoutes, match="turn 1 .*One trajectory is sampled from one model"):
        stitch(trajectory(a, b, only_new_rows=False), [1, 2, 3, 4])


def test_an_empty_trajectory_says_what_is_known():
    with pytest.raises(MissingRoutes, match="no sealed turn .none seen"):
        stitch(trajectory(), [1, 2])


def test_float_tokens_are_a_type_error():
    turns, tokens = conversation((5, 3))

    with pytest.raises(TypeError, match="1-D array of integers"):
        stitch(trajectory(*turns), tokens.astype(float))


def test_policy_versions_are_found_by_position():
    first = turn([1, 2], [3, 4], policy_versions=(PolicySpan("7", 0, 3), PolicySpan("8", 3, 4)))

    stitched = stitch(trajectory(first))

    assert [stitched.policy_version(p) for p in range(4)] == ["7", "7", "7", None]


def test_rows_that_start_late_leave_a_hole_that_is_named():
    turns, tokens = conversation((5, 3), (2, 4))
    late = turn(tokens[:10], tokens[10:], request_id="chatcmpl-1", row_start=9)

    with pytest.raises(MissingRoutes, match="position 7"):
        stitch(trajectory(turns[0], late), tokens)


def test_stitched_routes_of_one_layer_range_keep_its_start():
    turns, tokens = conversation((5, 3))
    part = dataclasses.replace(turns[0], experts=turns[0].experts[:, 1:], layer_start=1)

    stitched = stitch(trajectory(part, only_new_rows=False), tokens)

    assert stitched.layer_start == 1
    assert stitched.experts.shape == (8, 2, 2)


def poisoned(routes):
    manifest = msgspec.structs.replace(routes.manifest, invalid=("zero_rows",))
    return dataclasses.replace(routes, manifest=manifest)


def test_a_turn_that_was_sealed_as_invalid_is_refused_with_its_reason():
    (first, second), tokens = conversation((5, 3), (2, 4))

    with pytest.raises(PoisonedRoutes, match=r"turn 1.*sealed as invalid \(zero_rows\)"):
        stitch(trajectory(first, poisoned(second)), tokens)


def test_with_missing_live_no_row_of_an_invalid_turn_is_used():
    (first, second), tokens = conversation((5, 3), (2, 4))

    stitched = stitch(trajectory(poisoned(first), second), tokens, missing="live")

    assert stitched.missing.tolist() == [True] * 7 + [False] * 6 + [True]
    assert not stitched.experts[:7].any()
