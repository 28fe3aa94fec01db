"""What the recorder hands on, for each way in which vLLM's requests come and go."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from support.recorded_engine import Engine, parent_of

from routereplay.patches.vllm.headers import RouteHeaders


@pytest.fixture
def engine():
    return Engine()


def test_rows_are_taken_away_from_the_response_and_handed_on(engine):
    request = engine.add("chatcmpl-a")
    output = engine.step(request, 3)
    engine.step(request, 1, finish="length")

    assert output.routed_experts is None
    info, ending = engine.handed.seals["chatcmpl-a", 0]
    assert ending.completion_token_ids == [7, 7]
    assert ending.finish_reason == "length"
    assert len(engine.handed.rows_of("chatcmpl-a")) == 4
    assert info.client.aliases == ("a",)


@pytest.mark.parametrize("asked", [1, "1", "true"])
def test_a_request_that_asks_for_its_routes_keeps_them(engine, asked):
    request = engine.add("chatcmpl-a", extra_args={"return_routed_experts": asked})

    assert engine.step(request, 3, finish="length").routed_experts is not None
    assert len(engine.handed.rows_of("chatcmpl-a")) == 3


def test_offline_generation_keeps_native_routes():
    engine = Engine(keep_native=True)
    request = engine.add("0")

    assert engine.step(request, 3, finish="length").routed_experts is not None
    assert list(engine.handed.seals) == [(f"{engine.recorder.engine_id}.0", 0)]


def test_an_engine_in_this_process_may_use_its_buffer_again():
    engine = Engine(keep_native=True)
    request = engine.add("0")
    rows = engine.step(request, 3).routed_experts
    rows[:] = 9

    (key,) = engine.handed.sources
    assert (engine.handed.rows_of(*key) == 1).all()


def test_a_stop_string_is_a_stop_and_surplus_rows_are_cut(engine):
    request = engine.add("chatcmpl-a")
    engine.step(request, 3)
    engine.step(request, 4, tokens=(1, 2, 3, 4), ends=True, kept=2)

    _, ending = engine.handed.seals["chatcmpl-a", 0]
    assert ending.finish_reason == "stop"
    assert ending.completion_token_ids == [7, 1, 2]
    assert len(engine.handed.rows_of("chatcmpl-a")) == 3 + 3 - 1


@pytest.mark.parametrize("rows", [[2], [5, 1], [2, 2], [3, 0], [3, 2], [None], [3, None]])
def test_a_step_with_too_few_or_too_many_rows_loses_the_record(engine, rows):
    request = engine.add("chatcmpl-a")
    for count in rows:
        engine.step(request, count)
    engine.step(request, 1, finish="length")

    assert engine.handed.drops == {("chatcmpl-a", 0): "rows_missing"}
    assert engine.handed.seals == {}


@pytest.mark.parametrize("row_start", [0, 1, 2, 3])
def test_rows_that_the_client_has_are_not_missed(engine, row_start):
    request = engine.add("chatcmpl-a", row_start=row_start)
    engine.step(request, 3 - row_start)
    engine.step(request, 1)
    engine.step(request, 1, finish="stop")

    info, _ = engine.handed.seals["chatcmpl-a", 0]
    assert info.row_start == row_start
    assert len(engine.handed.rows_of("chatcmpl-a")) == 3 + 3 - 1 - row_start


def test_an_abort_seals_the_rows_so_far(engine):
    request = engine.add("chatcmpl-a")
    engine.step(request, 3)
    engine.recorder.requests_aborted([request, "unknown"])
    engine.recorder.requests_aborted([request])

    _, ending = engine.handed.seals["chatcmpl-a", 0]
    assert ending.finish_reason == "abort"
    assert len(engine.handed.rows_of("chatcmpl-a")) == 3


def test_a_shutdown_seals_the_rows_so_far_of_every_request(engine):
    for name in ("chatcmpl-a", "chatcmpl-b"):
        request = engine.add(name)
        engine.step(request, 3)
    engine.recorder.engine_stopped()
    engine.states[request].detokenizer.output_token_ids.append(9)

    assert [e.completion_token_ids for _, e in engine.handed.seals.values()] == [[7], [7]]
    assert {e.finish_reason for _, e in engine.handed.seals.values()} == {"abort"}
    assert len(engine.handed.seals) == 2


def test_an_abort_before_the_first_token_is_reported(engine):
    request = engine.add("chatcmpl-a")
    engine.recorder.requests_aborted([request])

    assert engine.handed.drops == {("chatcmpl-a", 0): "aborted"}


def test_a_dead_engine_loses_every_open_record(engine):
    engine.step(engine.add("chatcmpl-a"), 3)
    engine.add("chatcmpl-b")
    engine.recorder.engine_failed()

    assert set(engine.handed.drops.values()) == {"engine_error"}
    assert len(engine.handed.drops) == 2


def test_an_errored_request_is_lost(engine):
    request = engine.add("chatcmpl-a")
    engine.step(request, 3, finish="error")

    assert engine.handed.drops == {("chatcmpl-a", 0): "engine_error"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt_embeds": object()}, "prompt_embeds"),
        ({"prompt_token_ids": None}, "prompt_embeds"),
        ({"resumable": True}, "streaming_input"),
        ({"external_req_id": "cmpl-a-0-ff-beam-3"}, "beam_search"),
    ],
)
def test_what_cannot_be_recorded_is_counted_and_still_stripped(engine, fields, reason):
    request = engine.add("chatcmpl-a", **fields)
    output = engine.step(request, 3, finish="length")

    assert engine.recorder._exporter.ledger.stats().not_recorded == {reason: 1}
    assert output.routed_experts is None
    assert engine.handed.sources == {} == engine.handed.seals == engine.handed.drops


def test_a_pooling_request_is_none_of_our_business(engine):
    request = engine.add("embd-a", sampling_params=None)

    assert engine.step(request, None, tokens=(), finish="stop").finish_reason == "stop"
    assert engine.handed.ledger.stats().not_recorded == {}


def test_choices_of_prompts_are_numbered_as_the_client_sees_them(engine):
    for prompt in range(2):
        parent = parent_of(2)
        for index in range(2):
            request = engine.add(f"cmpl-a-{prompt}", parent=parent, index=index)
            engine.step(request, 3, finish="length")

    assert sorted(engine.handed.seals) == [("cmpl-a", i) for i in range(4)]


def test_requests_of_a_trajectory_are_numbered_and_choices_share_a_number(engine):
    parent = parent_of(2)
    for name, index in (("chatcmpl-a", 0), ("chatcmpl-b", 0), ("chatcmpl-b", 1)):
        request = engine.add(name, parent=parent, index=index, session_id="episode")
        engine.step(request, 3, finish="length")
    infos = [info for info, _ in engine.handed.seals.values()]

    assert [info.ordinal for info in infos] == [0, 1, 1]
    assert {info.trajectory_id for info in infos} == {"episode"}
    assert len({info.upload_id for info in infos}) == 3


def test_a_full_queue_loses_the_record_once_and_the_request_goes_on(engine):
    request = engine.add("chatcmpl-a")
    engine.handed.room = 2
    engine.step(request, 3)
    engine.handed.room = None
    output = engine.step(request, 1)
    engine.step(request, 1, finish="length")

    assert output.routed_experts is None
    assert engine.handed.drops == {("chatcmpl-a", 0): "queue_full"}
    assert not engine.handed.sources["chatcmpl-a", 0]


def test_an_internal_error_never_reaches_vllm_and_is_counted(engine):
    engine.handed.broken = True
    engine.step(engine.add("chatcmpl-a"), 3)

    assert engine.handed.ledger.stats().internal_errors == 1


def test_five_errors_in_a_row_switch_the_recorder_off_and_vllm_is_stock(engine, caplog):
    engine.handed.broken = True
    request = engine.add("chatcmpl-a")
    output = object()
    for _ in range(5):
        engine.recorder.take([output])
    later = engine.step(request, 3, finish="length")

    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "off after 5 errors" in errors[0].message
    assert later.routed_experts is not None
    assert engine.handed.drops == {("chatcmpl-a", 0): "internal_error"}


def test_the_weight_versions_of_vllm_become_spans_of_rows(engine):
    request = engine.add("chatcmpl-a", extra_args={"policy_version": "ignored"})
    engine.states[request].weight_version_starts = [("v1", 0), ("v2", 2)]
    engine.step(request, 3)
    for finish in (None, "length"):
        engine.step(request, 1, finish=finish)

    _, ending = engine.handed.seals["chatcmpl-a", 0]
    spans = [(span.version, span.start, span.stop) for span in ending.policy_versions]
    # Output token 2 was sampled from the row of token 3 + 2 - 1.
    assert spans == [("v1", 0, 4), ("v2", 4, 6)]


def test_a_default_weight_version_gives_way_to_the_requests_own(engine):
    request = engine.add("chatcmpl-a", extra_args={"policy_version": 12})
    engine.states[request].weight_version_starts = [("default", 0)]
    engine.step(request, 3, finish="length")

    _, ending = engine.handed.seals["chatcmpl-a", 0]
    assert [(s.version, s.start, s.stop) for s in ending.policy_versions] == [("12", 0, 4)]


@pytest.mark.parametrize("refusal", ["0", 0, "false", "No"])
def test_a_request_that_opts_out_is_counted_and_not_recorded(engine, refusal):
    request = engine.add("cmpl-a", extra_args={"record_routes": refusal})
    output = engine.step(request, 3, finish="length")

    assert output.routed_experts is None
    assert engine.handed.sources == {}
    assert engine.handed.ledger.stats().not_recorded == {"opted_out": 1}


def test_an_engine_may_use_the_buffer_of_a_canarys_rows_again(engine):
    shown = []
    engine.recorder.show_rows_of("probe", shown)
    rows = np.ones((3, 4, 2), "uint8")
    output = SimpleNamespace(
        request_id=engine.add("probe"), new_token_ids=[7], routed_experts=rows, finish_reason=None
    )
    engine.recorder.take([output])
    rows[:] = 0

    assert shown[0].all()


def test_a_request_of_an_adapter_is_recorded_under_its_name(engine):
    engine.add("cmpl-a", lora_request=SimpleNamespace(lora_name="adapter"))
    engine.add("cmpl-b")

    assert engine.handed.opened["cmpl-a", 0].model_name == "adapter"
    assert engine.handed.opened["cmpl-b", 0].model_name == "tiny"


def serve(engine, headers, **request):
    async def app(scope, receive, send):
        await asyncio.create_task(admit())

    async def admit():
        engine.add("chatcmpl-a", **request)

    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(RouteHeaders(app)({"type": "http", "headers": sent}, None, None))


def test_headers_reach_the_record_through_the_tasks_of_their_request(engine):
    serve(engine, {"x-trajectory-id": "episode-1", "x-policy-version": "step-7"})
    engine.step("0_chatcmpl-a-internal", 3, finish="length")

    info, ending = engine.handed.seals["chatcmpl-a", 0]
    assert info.trajectory_id == "episode-1"
    assert [span.version for span in ending.policy_versions] == ["step-7"]


def test_a_field_of_the_body_wins_over_its_header(engine):
    serve(engine, {"x-trajectory-id": "header"}, extra_args={"trajectory_id": "body"})
    engine.step("0_chatcmpl-a-internal", 3, finish="length")

    assert engine.handed.seals["chatcmpl-a", 0][0].trajectory_id == "body"


def test_the_headers_of_one_request_are_not_those_of_the_next(engine):
    serve(engine, {"x-trajectory-id": "episode-1"})
    other = engine.add("chatcmpl-b")
    engine.step(other, 3, finish="length")

    assert engine.handed.seals["chatcmpl-b", 0][0].trajectory_id is None


@pytest.mark.parametrize(("may", "start"), [(True, 3), (False, 2)])
def test_leaving_out_a_whole_prompt_is_cut_where_it_would_end_the_engine(may, start):
    engine = Engine(may_leave_out_all=may)
    request = engine.add("cmpl-a", prompt=(1, 2, 3), row_start=3)

    assert engine.requests[request].sampling_params.routed_experts_prompt_start == start
    assert engine.handed.opened["cmpl-a", 0].row_start == start
