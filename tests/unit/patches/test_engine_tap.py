"""The tap in the engine: what its loop shows the recorder, and what the recorder makes of it."""

from types import SimpleNamespace

import numpy as np
import pytest
from support.recorded_engine import MODEL, Handed

from routereplay.patches.vllm.engine_tap import EngineTap, keep_core_request, taps_engine
from routereplay.patches.vllm.recorder import Recorder
from routereplay.wire.records import PolicySpan


class Loop:
    """The part of the engine's loop that the tap stands in."""

    def __init__(self):
        self.handed = Handed()
        self.tap = EngineTap(Recorder(MODEL, self.handed, keep_native=False, in_engine=True), None)

    def add(self, name, prompt=(1, 2, 3), extra_args=None):
        """The input thread makes a `Request`, and the loop gives it to the scheduler."""
        params = SimpleNamespace(n=1, extra_args=extra_args, routed_experts_prompt_start=0)
        core_request = SimpleNamespace(
            request_id=f"{name}-0a1b2c3d",
            external_req_id=name,
            prompt_token_ids=list(prompt),
            prompt_embeds=None,
            sampling_params=params,
            lora_request=None,
            arrival_time=1.0,
            resumable=False,
            session_id=None,
        )
        request = SimpleNamespace(request_id=core_request.request_id, sampling_params=params)
        keep_core_request(request, core_request)
        self.tap.request_added(request)
        return request

    def step(self, request, rows, tokens=(7,), finish=None):
        output = SimpleNamespace(
            request_id=request.request_id,
            new_token_ids=list(tokens),
            routed_experts=np.ones((rows, 4, 2), "uint8"),
            finish_reason=finish,
        )
        self.tap.step([output])
        return output


@pytest.fixture
def loop():
    return Loop()


def test_a_request_that_the_engine_ends_is_whole(loop):
    request = loop.add("cmpl-a")
    outputs = [loop.step(request, 3), loop.step(request, 1, [8], finish="length")]

    info, ending = loop.handed.seals["cmpl-a", 0]
    assert info.client.aliases == ("a",)
    assert ending.completion_token_ids == [7, 8]
    assert (ending.finish_reason, ending.open_ended) == ("length", False)
    assert len(loop.handed.rows_of("cmpl-a")) == 3 + 2 - 1
    assert [output.routed_experts for output in outputs] == [None, None]
    assert not loop.tap.recorder.open


@pytest.mark.parametrize("name", ["cmpl-a-1", "12345678", "chatcmpl-step-7-3", "resp_a_1"])
def test_an_id_is_the_clients_whatever_it_looks_like(loop, name):
    request = loop.add(name)
    loop.step(request, 3, finish="stop")

    assert list(loop.handed.seals) == [(name, 0)]


@pytest.mark.parametrize("which", ["one", "list", "all"])
def test_what_the_front_end_ends_may_have_been_cut_for_the_client(loop, which):
    request = loop.add("cmpl-a")
    loop.step(request, 3)
    loop.step(request, 1, [8])
    name = request.request_id
    loop.tap.requests_aborted({"one": name, "list": [name, "other"], "all": None}[which])

    _, ending = loop.handed.seals["cmpl-a", 0]
    assert (ending.finish_reason, ending.open_ended) == ("abort", True)
    assert ending.completion_token_ids == [7, 8]


def test_the_last_of_several_tokens_of_a_step_may_be_cut_too(loop):
    request = loop.add("cmpl-a")
    loop.step(request, 3)
    loop.step(request, 2, [8, 9], finish="length")

    assert loop.handed.seals["cmpl-a", 0][1].open_ended


def test_a_second_turn_leaves_out_what_the_first_has(loop):
    trajectory = {"trajectory_id": "t"}
    loop.step(loop.add("cmpl-a", extra_args=trajectory), 4, [7, 8], finish="length")
    second = loop.add("cmpl-b", prompt=[1, 2, 3, 7, 8, 9], extra_args=trajectory)

    # Three of its prompt and one of its sampled tokens have a row.
    assert second.sampling_params.routed_experts_prompt_start == 4
    loop.step(second, 2, finish="length")
    info, _ = loop.handed.seals["cmpl-b", 0]
    assert (info.row_start, info.parent.request_id) == (4, "cmpl-a")


def test_a_row_too_few_loses_the_record(loop):
    request = loop.add("cmpl-a")
    loop.step(request, 2)
    loop.step(request, 1, finish="length")

    assert loop.handed.drops == {("cmpl-a", 0): "rows_missing"}


def test_an_engine_that_fails_loses_what_is_open(loop):
    loop.step(loop.add("cmpl-a"), 3)
    loop.tap.recorder.engine_failed()

    assert loop.handed.drops == {("cmpl-a", 0): "engine_error"}


def test_our_own_errors_end_the_records_and_not_the_engines_loop(loop):
    request = loop.add("cmpl-a")
    loop.step(request, 3)
    for _ in range(5):
        loop.tap.step([SimpleNamespace(routed_experts=None)])
    loop.step(request, 1, finish="length")

    assert loop.handed.drops == {("cmpl-a", 0): "internal_error"}
    assert loop.handed.seals == {}
    assert loop.handed.ledger.stats().internal_errors == 5


def test_a_request_of_our_own_front_end_is_left_to_it(loop):
    loop.tap.request_added(SimpleNamespace(request_id="a", sampling_params=None))

    assert not loop.tap.recorder.open


def test_new_weights_in_mid_request_begin_a_span(loop):
    versions = iter(["1", "1", "2", "2"])
    loop.tap.weight_version_of = lambda: next(versions)
    request = loop.add("cmpl-a")
    loop.step(request, 3)
    loop.step(request, 1, [8])
    loop.step(request, 1, [9], finish="length")

    _, ending = loop.handed.seals["cmpl-a", 0]
    assert ending.policy_versions == (PolicySpan("1", 0, 3), PolicySpan("2", 3, 6))


@pytest.mark.parametrize(
    ("environ", "taps"),
    [
        ({}, False),
        ({"VLLM_USE_RUST_FRONTEND": "0"}, False),
        ({"VLLM_USE_RUST_FRONTEND": "1"}, True),
        ({"ROUTEREPLAY_TAP": "engine"}, True),
        ({"ROUTEREPLAY_TAP": " Engine"}, True),
        ({"ROUTEREPLAY_TAP": "auto"}, False),
    ],
)
def test_engines_record_where_a_front_end_cannot(environ, taps):
    assert taps_engine(environ) is taps
