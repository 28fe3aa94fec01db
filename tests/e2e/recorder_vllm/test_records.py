"""What the recorder sends, of the real server, equals what the model really computed."""

import numpy as np
import pytest
from support.engine_core import engine_core_of, held_still

from routereplay.patches.vllm.releases import PROMPT_START_AT_END, SESSION_ID

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.mark.behaviour("/v1/completions")
def test_a_completion_is_recorded_row_for_row(api, sink, check):
    answer = api.complete("the quick brown fox jumps", max_tokens=12)
    choice = answer["choices"][0]
    record = sink.wait(answer["id"])

    check(record, choice["prompt_token_ids"], choice["token_ids"])
    assert record.manifest.finish_reason == "length"
    assert record.manifest.model == "tiny"


def test_experts_differ_between_tokens_so_that_equality_means_something(api, sink):
    answer = api.complete("abcdefghijklmnop", max_tokens=4)
    experts = sink.wait(answer["id"]).experts

    assert len(np.unique(experts[:, 1:], axis=0)) > len(experts) // 2
    assert not experts[:, 0].any(), "layer 0 is dense"


@pytest.mark.behaviour("native routes only on request")
def test_no_response_carries_routes_unless_asked(api, sink, check):
    silent = api.complete("hello", max_tokens=3)
    asked = api.complete("hello", max_tokens=3, vllm_xargs={"return_routed_experts": 1})

    assert silent["choices"][0]["routed_experts"] is None
    assert asked["choices"][0]["routed_experts"]
    choice = asked["choices"][0]
    check(sink.wait(asked["id"]), choice["prompt_token_ids"], choice["token_ids"])


@pytest.mark.behaviour("/v1/chat/completions", "n > 1")
def test_a_chat_with_two_choices_is_two_records(api, sink, check):
    answer = api.chat("hello world", n=2, temperature=1.0)

    assert answer["choices"][0]["token_ids"] != answer["choices"][1]["token_ids"]
    for choice in answer["choices"]:
        record = sink.wait(answer["id"], choice["index"])
        prompt = answer["prompt_token_ids"]
        # The second choice leaves the prompt's rows to the first.
        start = len(prompt) - 1 if choice["index"] else 0
        check(record, prompt, choice["token_ids"], row_start=start)
        assert choice["routed_experts"] is None


@pytest.mark.behaviour("/v1/chat/completions, streamed")
def test_a_streamed_chat_is_recorded_and_no_event_carries_routes(api, sink, check):
    messages = [{"role": "user", "content": "one two three"}]
    events = list(
        api.events("/v1/chat/completions", messages=messages, max_tokens=9, return_token_ids=True)
    )
    tokens = [t for e in events for c in e["choices"] for t in c.get("token_ids") or ()]
    record = sink.wait(events[0]["id"])

    check(record, events[0]["prompt_token_ids"], tokens)
    assert not any("routed_experts" in c for e in events for c in e["choices"])


@pytest.mark.behaviour("/v1/completions, streamed")
def test_a_streamed_completion_is_recorded(api, sink, check):
    events = list(
        api.events("/v1/completions", prompt="one two", max_tokens=7, return_token_ids=True)
    )
    tokens = [t for e in events for c in e["choices"] for t in c.get("token_ids") or ()]
    prompt = events[0]["choices"][0]["prompt_token_ids"]

    check(sink.wait(events[0]["id"]), prompt, tokens)


@pytest.mark.behaviour("several prompts in one request")
def test_prompts_of_one_request_are_found_under_the_choice_that_the_client_sees(api, sink, check):
    answer = api.complete(["hello", "good bye"], n=2, temperature=1.0, max_tokens=5)

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for choice in answer["choices"]:
        record = sink.wait(answer["id"], choice["index"])
        prompt = choice["prompt_token_ids"]
        start = len(prompt) - 1 if choice["index"] % 2 else 0
        check(record, prompt, choice["token_ids"], row_start=start)


@pytest.mark.behaviour("stop string")
def test_a_stop_string_ends_the_record_with_the_completion(api, sink, check):
    text = api.complete("stop here", max_tokens=12)["choices"][0]["text"]
    answer = api.complete("stop here", max_tokens=12, stop=[text[4:6]])
    choice = answer["choices"][0]
    record = sink.wait(answer["id"])

    assert choice["finish_reason"] == "stop"
    assert len(choice["token_ids"]) < 12
    check(record, choice["prompt_token_ids"], choice["token_ids"])
    assert record.manifest.finish_reason == "stop"


@pytest.mark.behaviour("max_tokens=1")
def test_one_token_has_a_row_for_each_prompt_token(api, sink, check):
    answer = api.complete("just one", max_tokens=1)
    choice = answer["choices"][0]
    record = sink.wait(answer["id"])

    check(record, choice["prompt_token_ids"], choice["token_ids"])
    assert record.manifest.rows == len(choice["prompt_token_ids"])


@pytest.mark.behaviour("prefix-cache hit")
def test_a_prompt_from_the_prefix_cache_is_recorded_whole(api, sink, check):
    prompt = [int(t) for t in np.random.default_rng(0).integers(1, 500, 200)]
    for _ in range(2):
        answer = api.complete(prompt, max_tokens=3)
        choice = answer["choices"][0]
        check(sink.wait(answer["id"]), prompt, choice["token_ids"])


@pytest.mark.behaviour("routed_experts_prompt_start at its boundaries")
def test_rows_that_the_client_has_already_are_left_out(api, sink, check, release):
    if not release.has(SESSION_ID):
        pytest.skip("not in the request's body before 0.28")
    prompt = list(range(1, 41))
    for row_start in (0, 16, 39, 40) if release.has(PROMPT_START_AT_END) else (0, 16, 39):
        answer = api.complete(prompt, max_tokens=5, routed_experts_prompt_start=row_start)
        tokens = answer["choices"][0]["token_ids"]
        check(sink.wait(answer["id"]), prompt, tokens, row_start=row_start)


@pytest.mark.behaviour("X-Request-Id of the client")
def test_the_clients_own_request_id_is_an_alias(api, sink):
    answer = api.chat("hi", headers={"X-Request-Id": "my-request-1"})
    record = sink.wait(answer["id"])

    assert answer["id"] == "chatcmpl-my-request-1"
    assert record.manifest.aliases == ("my-request-1",)


@pytest.mark.behaviour("trajectory by X-Session-ID, session_id, vllm_xargs")
def test_turns_of_a_session_share_a_trajectory_and_are_numbered(api, sink, release):
    xargs = {"trajectory_id": "episode {7}"}
    body = {"session_id": "episode {7}"} if release.has(SESSION_ID) else {"vllm_xargs": xargs}
    ids = [
        # The middleware reads the header before 0.28.
        api.chat("turn", headers={"X-Session-ID": "episode {7}"})["id"],
        api.chat("turn", **body)["id"],
        api.chat("turn", vllm_xargs=xargs)["id"],
    ]
    manifests = [sink.wait(request_id).manifest for request_id in ids]

    assert len({manifest.trajectory_id for manifest in manifests}) == 1
    assert manifests[0].trajectory_id.startswith("h."), "braces cannot be in a key"
    assert [manifest.ordinal for manifest in manifests] == [0, 1, 2]
    assert len({manifest.engine_id for manifest in manifests}) == 1


@pytest.mark.behaviour("policy version of the request")
def test_the_policy_version_of_the_request_covers_its_tokens(api, sink):
    answer = api.complete("v", max_tokens=2, vllm_xargs={"policy_version": "step-12"})
    manifest = sink.wait(answer["id"]).manifest

    (span,) = manifest.policy_versions
    assert (span.version, span.start, span.stop) == ("step-12", 0, manifest.num_tokens)


@pytest.mark.behaviour("client disconnect")
def test_a_client_that_disconnects_leaves_the_rows_so_far(api, sink, reference):
    # The engine is held still while the client hangs up: on a busy machine it might end before the
    # front end hears of it. It may even have ended before it could be held: then again.
    for _ in range(10):
        events = api.events("/v1/completions", prompt="going away", max_tokens=900)
        first = next(events)
        for _ in range(3):
            next(events)
        with held_still(engine_core_of(api.server_pid)):
            events.close()
            record = sink.wait(first["id"])
        if record.manifest.finish_reason != "length":
            break

    assert record.manifest.finish_reason == "abort"
    assert 3 <= record.manifest.completion_len < 900
    assert record.manifest.complete
    expected = reference.experts(record.token_ids)[:-1]
    assert np.array_equal(np.sort(record.experts, -1), expected)


@pytest.mark.behaviour("48 requests at once")
def test_many_requests_at_once_are_all_recorded(api, sink, check):
    from concurrent.futures import ThreadPoolExecutor

    def one(i):
        return api.complete(f"request {i} ", max_tokens=5 + i % 7, temperature=1.0)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(48)))
    for answer in answers:
        choice = answer["choices"][0]
        check(sink.wait(answer["id"]), choice["prompt_token_ids"], choice["token_ids"])
