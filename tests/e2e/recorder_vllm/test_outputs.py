"""What the server says is the same whatever the store does: up, down, slow or malicious."""

import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from support.toxic_proxy import Toxics, http_answer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPTS = [f"{word} jumps over the lazy dog, number {n}" for n, word in enumerate("abcdef" * 2)]
STAGED = {"results": [{"status": "refused", "code": "ok", "message": "\x00" * 1000}]}
ENDLESS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 65536

MALICE = {
    "another page": http_answer(200, b"<html>welcome</html>"),
    "errors": http_answer(500, b"\xff" * 5000),
    "a redirect": http_answer(302, b"", Location="http://127.0.0.1:9/steal"),
    "no end": ENDLESS,
    "half an answer": http_answer(200, b"x" * 100)[:-50],
    "no HTTP": b"\x00\xff" * 4000,
    "too few results": http_answer(200, msgspec.json.encode(STAGED)),
    "a bomb": http_answer(200, b"\x1f\x8b" * 100, Content_Encoding="gzip"),
    "come back": http_answer(503, Retry_After="soon"),
}


def outputs(api):
    """Token ids and texts of fixed prompts, greedy, four at a time."""
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda text: api.complete(text, max_tokens=12), PROMPTS))
    choices = [answer["choices"][0] for answer in answers]
    return [(choice["token_ids"], choice["text"], choice["finish_reason"]) for choice in choices]


@pytest.fixture
def store_is(way):
    def switch(**toxics):
        way.toxics = Toxics(**toxics)
        way.drop_connections()

    yield switch
    switch()


def test_outputs_are_the_same_with_the_store_up_down_slow_and_malicious(
    api, sink, store_is, moe_server
):
    expected = outputs(api)
    tried = []

    def malicious(head):
        tried.append(sorted(MALICE)[len(tried) % len(MALICE)])
        return MALICE[tried[-1]]

    assert outputs(api) == expected, "up"
    for name, toxics in {
        "down": {"refuse": True},
        "hanging": {"hang": True},
        "slow": {"bytes_per_s": 2000.0, "slice_bytes": 100},
        "malicious": {"answer": malicious},
    }.items():
        store_is(**toxics)
        began = time.monotonic()
        while time.monotonic() < began + 2 or (name == "malicious" and len(tried) < len(MALICE)):
            assert outputs(api) == expected, name
            assert time.monotonic() < began + 60, tried
            time.sleep(0.5)
    store_is()
    after = api.complete("after all of it", max_tokens=5)

    assert sink.wait(after["id"], timeout_s=60).manifest.complete
    deadline = time.monotonic() + 60
    while api.metric("routereplay_recorder_held_rows"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert api.metric("routereplay_recorder_unaccounted_rows") == 0
    assert "route recorder failed" not in moe_server.log_path.read_text()
