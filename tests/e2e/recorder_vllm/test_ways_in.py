"""Every API of the server leads past the tap, also those that have no routes of their own."""

import time

import numpy as np
import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture
def whole(sink, reference):
    """The record of an API that shows no token ids: its rows are those of its own tokens."""

    def check_record(request_id, completion_len=6):
        record = sink.wait(request_id)
        assert record.manifest.complete
        assert record.manifest.completion_len == completion_len
        expected = reference.experts(record.token_ids)[:-1]
        assert np.array_equal(np.sort(record.experts, -1), expected)
        return record

    return check_record


@pytest.mark.behaviour("/v1/responses")
def test_a_response_is_recorded_under_the_id_that_the_client_sees(api, sink, whole):
    answer = api.post("/v1/responses", input="hello", max_output_tokens=6)

    engine_id = f"{answer['id']}_0"
    assert whole(engine_id).manifest.aliases == (answer["id"],)


@pytest.mark.behaviour("/v1/responses, streamed")
def test_a_streamed_response_is_recorded(api, whole):
    events = list(api.events("/v1/responses", input="hello", max_output_tokens=6))
    answer = next(event["response"] for event in events if "response" in event)

    whole(f"{answer['id']}_0")


@pytest.mark.behaviour("/v1/messages")
def test_an_anthropic_message_is_recorded(api, whole):
    messages = [{"role": "user", "content": "hello"}]
    answer = api.post("/v1/messages", messages=messages, max_tokens=6)

    assert whole(answer["id"]).manifest.prompt_len > 1


@pytest.mark.behaviour("/v1/messages, streamed")
def test_a_streamed_anthropic_message_is_recorded(api, whole):
    messages = [{"role": "user", "content": "hello"}]
    events = list(api.events("/v1/messages", messages=messages, max_tokens=6))
    answer = next(event["message"] for event in events if "message" in event)

    whole(answer["id"])


@pytest.mark.behaviour("/inference/v1/generate")
def test_tokens_in_and_tokens_out_are_recorded(api, sink, check):
    prompt = [11, 12, 13, 14, 15]
    sampling = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    answer = api.post("/inference/v1/generate", token_ids=prompt, sampling_params=sampling)
    record = sink.wait(answer["request_id"])

    check(record, prompt, answer["choices"][0]["token_ids"])
    assert record.manifest.aliases == (answer["request_id"].removeprefix("generate-tokens-"),)


@pytest.mark.behaviour("/inference/v1/generate, streamed")
def test_streamed_tokens_are_recorded_and_no_event_carries_routes(api, sink, check):
    prompt = [11, 12, 13, 14, 15, 16]
    sampling = {"max_tokens": 7, "temperature": 0, "ignore_eos": True}
    path = "/inference/v1/generate"
    events = list(api.events(path, token_ids=prompt, sampling_params=sampling))
    choices = [choice for event in events for choice in event["choices"]]
    tokens = [token for choice in choices for token in choice["token_ids"] or ()]

    check(sink.wait(events[0]["request_id"]), prompt, tokens)
    assert not any(choice.get("routed_experts") for choice in choices)


@pytest.mark.behaviour("trajectory and policy version by header")
def test_headers_say_trajectory_and_policy_where_a_body_cannot(api, sink):
    headers = {"X-Trajectory-Id": "by-header", "X-Policy-Version": "step-3"}
    messages = [{"role": "user", "content": "hello"}]
    answer = api.post("/v1/messages", headers, messages=messages, max_tokens=3)
    manifest = sink.wait(answer["id"]).manifest

    assert manifest.trajectory_id == "by-header"
    assert [span.version for span in manifest.policy_versions] == ["step-3"]


@pytest.mark.behaviour("opt-out of a request")
def test_a_request_may_opt_out(api, sink):
    left_out = api.complete("leave me out", vllm_xargs={"record_routes": 0})
    recorded = api.complete("take me")
    sink.wait(recorded["id"])

    assert (left_out["id"], 0) not in sink.records
    metric = "routereplay_recorder_not_recorded_requests_total"
    deadline = time.monotonic() + 10
    while api.metric(metric, reason="opted_out") < 1:
        assert time.monotonic() < deadline, "figures are published every second"
        time.sleep(0.1)


@pytest.mark.behaviour("stop token")
def test_a_stop_token_ends_the_record(api, sink, check):
    prompt = [21, 22, 23, 24]
    free = api.complete(prompt, max_tokens=12)["choices"][0]["token_ids"]
    answer = api.complete(prompt, max_tokens=12, stop_token_ids=[free[5]])
    tokens = answer["choices"][0]["token_ids"]

    assert len(tokens) <= 6
    check(sink.wait(answer["id"]), prompt, tokens)


@pytest.mark.behaviour("logprobs, prompt logprobs and echo")
def test_log_probabilities_change_nothing(api, sink, check):
    prompt = [31, 32, 33, 34]
    options = {"logprobs": 2, "prompt_logprobs": 1, "echo": True}
    answer = api.complete(prompt, max_tokens=4, **options)
    choice = answer["choices"][0]

    check(sink.wait(answer["id"]), choice["prompt_token_ids"], choice["token_ids"])


def test_the_canary_was_proven_and_left_no_record(api, sink):
    assert api.metric("routereplay_recorder_canary", state="proven") == 1
    assert not [key for key in sink.records if "canary" in key[0]]
    assert not [drop for drop in sink.drops if "canary" in drop.reason]
