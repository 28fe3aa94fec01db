"""vLLM's own front end in Rust before a real engine: the engine records by itself."""

import concurrent.futures
import contextlib
import os
import signal
import sys
import time

import httpx
import numpy as np
import pytest
from support.behaviours import WITHOUT_TAP
from support.engine_core import engine_core_of, held_still, worker_below
from support.openai_api import Api
from support.vllm_rs import installed

from routereplay.parity.child_server import ChildServer, free_port
from routereplay.parity.vllm_server import CPU_ENVIRONMENT

from .conftest import CROWDED

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not installed().exists(),
        reason="vllm-rs comes with CUDA wheels only; ./scripts/compatibility fetches it",
    ),
]


@pytest.fixture(scope="module")
def metrics_port():
    return free_port()


@pytest.fixture(scope="module")
def rust_environment():
    return {"VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": str(installed())}


@pytest.fixture(scope="module")
def server(start, rust_environment, metrics_port):
    environment = {**rust_environment, "ROUTEREPLAY_METRICS_PORT": str(metrics_port)}
    with start(*CROWDED, "--enable-scale-out", **environment) as running:
        yield running


@pytest.fixture(scope="module")
def api(server):
    return Api(server)


@pytest.fixture
def check_cut(reference):
    """Check a record that may go on past what the client was given; return its surplus."""

    def check_record(record, prompt_ids, completion_ids):
        tokens = [*prompt_ids, *completion_ids]
        assert record.token_ids[: len(tokens)].tolist() == tokens
        assert record.manifest.complete
        expected = reference.experts(record.token_ids)[:-1]
        assert np.array_equal(np.sort(record.experts, -1), expected)
        return len(record.token_ids) - len(tokens)

    return check_record


@pytest.mark.behaviour("Rust front end: /v1/completions")
def test_a_completion_is_recorded_row_for_row(api, sink, check):
    answer = api.complete("the quick brown fox jumps", max_tokens=12)
    choice = answer["choices"][0]
    record = sink.wait(answer["id"])

    check(record, choice["prompt_token_ids"], choice["token_ids"])
    assert record.manifest.finish_reason == "length"
    assert record.manifest.model == "tiny"
    assert not record.manifest.open_ended


@pytest.mark.behaviour("Rust front end: /v1/chat/completions, X-Request-Id, X-Session-ID")
def test_a_chat_is_found_under_the_clients_own_id(api, sink, check):
    headers = {"X-Request-Id": "mine-1", "X-Session-ID": "rust-session"}
    answer = api.chat("hello world", headers)
    record = sink.wait("chatcmpl-mine-1")

    assert answer["id"] == "chatcmpl-mine-1"
    check(record, answer["prompt_token_ids"], answer["choices"][0]["token_ids"])
    assert record.manifest.aliases == ("mine-1",)
    assert record.manifest.trajectory_id == "rust-session"


@pytest.mark.behaviour("Rust front end: an X-Request-Id that ends in a number")
def test_a_number_at_the_end_of_an_id_is_no_choice(api, sink, check):
    answer = api.complete("count", {"X-Request-Id": "step-7-3"}, max_tokens=3)
    choice = answer["choices"][0]

    check(sink.wait("cmpl-step-7-3"), choice["prompt_token_ids"], choice["token_ids"])


@pytest.mark.behaviour("Rust front end: /v1/completions, streamed")
def test_a_streamed_completion_is_recorded(api, sink, check):
    path = "/v1/completions"
    events = list(api.events(path, prompt="one two", max_tokens=7, return_token_ids=True))
    tokens = [t for e in events for c in e["choices"] for t in c.get("token_ids") or ()]

    check(sink.wait(events[0]["id"]), events[0]["choices"][0]["prompt_token_ids"], tokens)


@pytest.mark.behaviour("Rust front end: /v1/chat/completions, streamed")
def test_a_streamed_chat_is_recorded_and_no_event_carries_routes(api, sink, check):
    path, messages = "/v1/chat/completions", [{"role": "user", "content": "one two three"}]
    events = list(api.events(path, messages=messages, max_tokens=9, return_token_ids=True))
    tokens = [t for e in events for c in e["choices"] for t in c.get("token_ids") or ()]

    check(sink.wait(events[0]["id"]), events[0]["prompt_token_ids"], tokens)
    assert not any(c.get("routed_experts") for e in events for c in e["choices"])


@pytest.mark.behaviour("Rust front end: /inference/v1/generate")
def test_tokens_in_and_tokens_out_are_recorded(api, sink, check):
    prompt = [11, 12, 13, 14, 15]
    sampling = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    # Nothing but digits: an id that counts up, to any other front end.
    headers = {"X-Request-Id": "12345678"}
    path = "/inference/v1/generate"
    answer = api.post(path, headers, token_ids=prompt, sampling_params=sampling)

    assert answer["request_id"] == "12345678"
    check(sink.wait("12345678"), prompt, answer["choices"][0]["token_ids"])


@pytest.mark.behaviour("Rust front end: many requests at once, chunked and preempted")
def test_requests_that_run_at_once_are_kept_apart(api, sink, check):
    prompts = [[3 + n + (n * k) % 400 for k in range(20 + 17 * n)] for n in range(12)]

    def ask(prompt):
        return api.complete(prompt, max_tokens=24, temperature=1.0)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        check(sink.wait(answer["id"]), prompt, answer["choices"][0]["token_ids"])


@pytest.mark.behaviour("Rust front end: prefix-cache hit")
def test_rows_of_a_cached_prefix_are_the_same(api, sink, check):
    prompt = list(range(20, 20 + 150))
    for _ in range(2):
        answer = api.complete(prompt, max_tokens=5)
        check(sink.wait(answer["id"]), prompt, answer["choices"][0]["token_ids"])


@pytest.mark.behaviour("Rust front end: trajectory, only new rows")
def test_a_second_turn_leaves_the_first_ones_rows_out(api, sink, check):
    xargs = {"trajectory_id": "rust-turns", "policy_version": "step-9"}
    prompt = list(range(40, 90))
    first = api.complete(prompt, max_tokens=8, vllm_xargs=xargs)
    said = first["choices"][0]["token_ids"]
    check(sink.wait(first["id"]), prompt, said)
    longer = [*prompt, *said, 7, 8, 9]
    second = api.complete(longer, max_tokens=8, vllm_xargs=xargs)
    start = len(prompt) + len(said) - 1
    record = sink.wait(second["id"])

    check(record, longer, second["choices"][0]["token_ids"], row_start=start)
    assert record.manifest.parent.request_id == first["id"]
    assert record.manifest.ordinal == 1
    assert [span.version for span in record.manifest.policy_versions] == ["step-9"]


@pytest.mark.behaviour("Rust front end: stop string")
def test_a_stop_string_ends_a_record_that_may_go_on(api, sink, check_cut):
    prompt = list(range(100, 130))
    free = api.complete(prompt, max_tokens=60)["choices"][0]
    stop = free["text"][12:14]
    answer = api.complete(prompt, max_tokens=60, stop=[stop])
    choice = answer["choices"][0]
    record = sink.wait(answer["id"])
    surplus = check_cut(record, prompt, choice["token_ids"])

    assert choice["finish_reason"] == "stop"
    assert 0 <= surplus < 60 - len(choice["token_ids"])
    assert record.manifest.open_ended
    assert record.manifest.finish_reason == "abort"


@pytest.mark.behaviour("Rust front end: stop token")
def test_a_stop_token_ends_a_record_where_the_client_sees_it(api, sink, check):
    prompt = [21, 22, 23, 24]
    free = api.complete(prompt, max_tokens=12)["choices"][0]["token_ids"]
    answer = api.complete(prompt, max_tokens=12, stop_token_ids=[free[5]])
    record = sink.wait(answer["id"])

    check(record, prompt, answer["choices"][0]["token_ids"])
    assert record.manifest.finish_reason == "stop"
    assert not record.manifest.open_ended


@pytest.mark.behaviour("Rust front end: client disconnect")
def test_a_client_that_goes_away_leaves_a_record(api, sink, check_cut):
    body = {"prompt": list(range(200, 240)), "max_tokens": 900, "return_token_ids": True}
    # The engine is held still while the client hangs up, or it might have ended before it hears
    # of it. It may even have ended before it could be held: then again.
    for _ in range(10):
        events = api.events("/v1/completions", **body)
        seen = [next(events) for _ in range(4)]
        with held_still(engine_core_of(api.server_pid)):
            events.close()
            time.sleep(0.2)
        record = sink.wait(seen[0]["id"])
        if record.manifest.finish_reason != "length":
            break
    tokens = [t for e in seen for c in e["choices"] for t in c.get("token_ids") or ()]

    assert record.manifest.finish_reason == "abort"
    assert check_cut(record, body["prompt"], tokens) < 890
    assert record.manifest.open_ended


def test_more_choices_than_one_are_refused_by_the_front_end(api):
    body = {"model": "tiny", "prompt": "hello", "n": 2, "max_tokens": 2}
    answer = api.http.post("/v1/completions", json=body)

    assert answer.status_code == 400
    assert "n=1" in answer.text


@pytest.mark.behaviour("Rust front end: canary, metrics and opt-out")
def test_the_engine_shows_what_it_records(api, sink, metrics_port):
    left_out = api.complete("leave me out", vllm_xargs={"record_routes": 0})
    recorded = api.complete("take me")
    sink.wait(recorded["id"])
    with httpx.Client(base_url=f"http://127.0.0.1:{metrics_port}", trust_env=False) as client:
        deadline = time.monotonic() + 10
        wanted = 'routereplay_recorder_not_recorded_requests_total{reason="opted_out"} 1.0'
        while wanted not in (text := client.get("/metrics").text):
            assert time.monotonic() < deadline, "figures are published every second"
            time.sleep(0.1)

    assert 'routereplay_recorder_canary{state="proven"} 1.0' in text
    assert "routereplay_recorder_unaccounted_rows 0.0" in text
    assert (left_out["id"], 0) not in sink.records
    assert not [key for key in sink.records if "canary" in key[0]]


@pytest.mark.behaviour("Rust front end: shutdown seals what is open")
def test_a_server_that_is_told_to_stop_seals_what_is_open(server, api, sink, check_cut):
    body = {"prompt": list(range(300, 340)), "max_tokens": 900, "return_token_ids": True}
    events = api.events("/v1/completions", **body)
    seen = [next(events) for _ in range(4)]
    server.stop()
    record = sink.wait(seen[0]["id"])
    tokens = [t for e in seen for c in e["choices"] for t in c.get("token_ids") or ()]

    check_cut(record, body["prompt"], tokens)
    assert record.manifest.finish_reason == "abort"


@pytest.fixture(scope="module")
def own_server(moe_path, sink, plugin_path, tmp_path_factory):
    """`vllm-rs serve`, which starts a headless engine that is not told of it."""
    port = free_port()
    engine = ("--dtype", "float32", "--enforce-eager", "--block-size", "32")
    engine = (*engine, "--num-gpu-blocks-override", "512")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        **CPU_ENVIRONMENT,
        "PYTHONPATH": plugin_path,
        "ROUTEREPLAY_STORE_URL": sink.url,
        "ROUTEREPLAY_TAP": "engine",
    }
    if WITHOUT_TAP:
        environment["ROUTEREPLAY_ENABLED"] = "0"
    server = ChildServer(
        [
            *(str(installed()), "serve", str(moe_path), "--port", str(port)),
            *("--python", sys.executable, "--served-model-name", "tiny"),
            *("--max-model-len", "1024", "--", *engine),
        ],
        port=port,
        log_path=tmp_path_factory.mktemp("log") / "vllm-rs.log",
        environment=environment,
        ready_path="/health",
        ready_timeout_s=240.0,
    )
    server.served_name = "tiny"
    with server:
        yield server


@pytest.fixture(scope="module")
def own_api(own_server):
    return Api(own_server)


@pytest.mark.behaviour("vllm-rs serve, ROUTEREPLAY_TAP=engine")
def test_an_engine_that_it_starts_records_if_it_is_told_to(own_api, sink, check):
    answer = own_api.complete("hello there", max_tokens=9)
    choice = answer["choices"][0]

    check(sink.wait(answer["id"]), choice["prompt_token_ids"], choice["token_ids"])


@pytest.mark.behaviour("Rust front end: engine failure")
def test_open_requests_of_an_engine_that_fails_are_lost_by_name(own_server, own_api, sink):
    events = own_api.events("/v1/completions", prompt="never ending", max_tokens=900)
    request_id = next(events)["id"]
    os.kill(worker_below(own_server.pid), signal.SIGKILL)

    assert sink.wait_drop(request_id).reason == "engine_error"
    with contextlib.suppress(httpx.HTTPError):
        list(events)
