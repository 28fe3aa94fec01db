"""Which rows a request leaves out, and what its record says of them."""

from types import SimpleNamespace

import numpy as np
import pytest
from support.recorded_engine import Engine, parent_of


@pytest.fixture
def engine():
    return Engine()


def turn(engine, name, prompt, tokens=(7, 8), **fields):
    """Serve one request; return what the record says of its start."""
    fields = {"session_id": "episode"} | fields
    request = engine.add(name, prompt=prompt, **fields)
    params = engine.requests[request].sampling_params
    for number, token in enumerate(tokens):
        last = number == len(tokens) - 1
        engine.step(request, 1 if number else len(prompt), (token,), "stop" if last else None)
    info, _ = engine.handed.seals[name, fields.get("index", 0)]
    assert params.routed_experts_prompt_start == info.row_start
    rows = engine.handed.rows_of(name, fields.get("index", 0))
    assert len(rows) == len(prompt) + len(tokens) - 1 - info.row_start
    return info


def test_a_turn_that_extends_the_one_before_is_a_delta_on_it(engine):
    first = turn(engine, "chatcmpl-a", [1, 2, 3])
    second = turn(engine, "chatcmpl-b", [1, 2, 3, 7, 8, 4])
    third = turn(engine, "chatcmpl-c", [1, 2, 3, 7, 8, 4, 7, 8, 5])

    assert [info.row_start for info in (first, second, third)] == [0, 4, 7]
    assert first.parent is None
    assert second.parent == ("chatcmpl-a", 0, first.upload_id)
    assert third.parent == ("chatcmpl-b", 0, second.upload_id)


def test_the_requests_own_parameters_are_copied_and_those_of_vllm_stay(engine):
    turn(engine, "chatcmpl-a", [1, 2, 3])
    shared = engine.requests["0_chatcmpl-a-internal"].sampling_params
    request = engine.add(
        "chatcmpl-b", [1, 2, 3, 7, 9], session_id="episode", sampling_params=shared
    )

    assert shared.routed_experts_prompt_start == 0
    assert engine.requests[request].sampling_params.routed_experts_prompt_start == 4


@pytest.mark.parametrize(
    ("before", "fields"),
    [
        ({}, {"session_id": "another"}),
        ({}, {"session_id": None}),
        ({}, {"extra_args": {"policy_version": 2}}),
        ({"extra_args": {"policy_version": 1}}, {"extra_args": {"policy_version": 2}}),
        ({"mm_features": [object()]}, {}),
        ({}, {"mm_features": [object()]}),
        ({"row_start": 1}, {}),
        ({}, {"lora_request": SimpleNamespace(lora_name="adapter")}),
        ({}, {"extra_args": {"return_routed_experts": 1}}),
    ],
)
def test_whatever_is_no_continuation_has_all_its_rows(engine, before, fields):
    turn(engine, "chatcmpl-a", [1, 2, 3], **before) if "row_start" not in before else None
    if "row_start" in before:
        request = engine.add("chatcmpl-a", [1, 2, 3], session_id="episode", **before)
        engine.step(request, 2, (7,), "stop")
    second = turn(engine, "chatcmpl-b", [1, 2, 3, 7, 8, 4], **fields)

    assert (second.row_start, second.parent) == (0, None)


def test_a_start_that_the_client_chose_is_left_alone(engine):
    turn(engine, "chatcmpl-a", [1, 2, 3])
    request = engine.add("chatcmpl-b", [1, 2, 3, 7, 8], session_id="episode", row_start=1)

    assert engine.requests[request].sampling_params.routed_experts_prompt_start == 1


def test_a_request_that_asked_for_native_routes_is_a_parent_all_the_same(engine):
    turn(engine, "chatcmpl-a", [1, 2, 3], extra_args={"return_routed_experts": 1})

    assert turn(engine, "chatcmpl-b", [1, 2, 3, 7, 8]).row_start == 0


def test_a_new_weight_version_begins_anew(engine):
    def serve(name, prompt, version):
        request = engine.add(name, prompt, session_id="episode")
        engine.states[request].weight_version_starts = [(version, 0)]
        engine.step(request, len(prompt), (7,), "stop")
        return engine.handed.seals[name, 0][0].row_start

    assert serve("a", [1, 2], "v1") == 0
    assert serve("b", [1, 2, 7, 3], "v1") == 2
    # Its engine has new weights: known from the first request that ended with them.
    turn_of_another = engine.add("x", [9], session_id="other")
    engine.states[turn_of_another].weight_version_starts = [("v2", 0)]
    engine.step(turn_of_another, 1, (7,), "stop")
    assert serve("c", [1, 2, 7, 3, 7, 4], "v2") == 0
    assert serve("d", [1, 2, 7, 3, 7, 4, 7, 5], "v2") == 6


def test_a_request_that_is_sent_again_is_no_delta_on_itself(engine):
    turn(engine, "chatcmpl-mine", [1, 2, 3])
    again = engine.add("chatcmpl-mine", [1, 2, 3], session_id="episode")

    assert engine.requests[again].sampling_params.routed_experts_prompt_start == 0


def test_choices_of_a_request_leave_the_prompt_to_the_first(engine):
    parent = parent_of(3)
    requests = [engine.add("chatcmpl-a", [1, 2, 3, 4], parent, index) for index in range(3)]
    for request in reversed(requests):
        engine.step(request, 4, (7,))
        engine.step(request, 1, (8,), "stop")
    infos = [engine.handed.seals["chatcmpl-a", index][0] for index in range(3)]

    assert [info.row_start for info in infos] == [0, 3, 3]
    assert infos[0].parent is None
    assert infos[1].parent == infos[2].parent == ("chatcmpl-a", 0, infos[0].upload_id)


def test_one_token_of_prompt_is_not_worth_a_parent(engine):
    parent = parent_of(2)
    for index in range(2):
        request = engine.add("chatcmpl-a", [1], parent, index)
        engine.step(request, 1, (7,), "stop")

    assert engine.handed.seals["chatcmpl-a", 1][0].parent is None


def test_the_first_choice_of_a_turn_is_a_delta_and_the_others_are_on_it(engine):
    first = turn(engine, "chatcmpl-a", [1, 2, 3])
    parent = parent_of(2)
    prompt = [1, 2, 3, 7, 8, 4]
    infos = [turn(engine, "chatcmpl-b", prompt, parent=parent, index=i) for i in range(2)]
    third = turn(engine, "chatcmpl-c", [*prompt, 7, 8, 5])

    assert [info.row_start for info in infos] == [4, 5]
    assert infos[0].parent.upload_id == first.upload_id
    assert infos[1].parent.upload_id == infos[0].upload_id
    assert (third.row_start, third.parent.upload_id) == (7, infos[1].upload_id)


@pytest.mark.parametrize("how", ["lost", "open"])
def test_a_turn_that_is_not_whole_is_nobodys_parent(engine, how):
    request = engine.add("chatcmpl-a", [1, 2, 3], session_id="episode")
    engine.step(request, 2 if how == "lost" else 3, (7,), "stop" if how == "lost" else None)

    assert turn(engine, "chatcmpl-b", [1, 2, 3, 7, 8]).row_start == 0


def test_switched_off_every_record_has_all_its_rows():
    engine = Engine(only_new_rows=False)
    turn(engine, "chatcmpl-a", [1, 2, 3])
    parent = parent_of(2)
    infos = [
        turn(engine, "chatcmpl-b", [1, 2, 3, 7, 8], parent=parent, index=index)
        for index in range(2)
    ]

    assert [(info.row_start, info.parent) for info in infos] == [(0, None)] * 2


def test_ten_turns_hand_on_every_row_exactly_once(engine):
    prompt = [1, 2, 3]
    for number in range(10):
        turn(engine, f"chatcmpl-{number}", prompt, tokens=(7, 8, 9))
        tokens = [*prompt, 7, 8, 9]
        prompt = [*tokens, 4, 5]
    rows = sum(len(engine.handed.rows_of(f"chatcmpl-{number}")) for number in range(10))

    assert rows == len(tokens) - 1
    assert engine.handed.ledger.stats().events["left_out"] == sum(range(5, 50, 5))
    assert np.array_equal(engine.handed.rows_of("chatcmpl-9").shape, (5, 4, 2))
