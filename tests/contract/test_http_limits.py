"""The limits below the app, on raw sockets: time, size, and requests that mean two things."""

import contextlib
import socket
import time

import httpx
import pytest
from support.frames import make_upload
from support.route_store import running_store
from support.store_processes import until

HEAD = b"POST /v1/ingest HTTP/1.1\r\nHost: x\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    limits = {"head_timeout_s": 0.5, "stall_timeout_s": 0.5, "max_connections": 30}
    folder = tmp_path_factory.mktemp("store")
    with running_store("embedded", folder, durability="memory", **limits) as running:
        yield running


@contextlib.contextmanager
def connected(store, *pieces, rcvbuf=0):
    raw = socket.socket()
    if rcvbuf:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    raw.settimeout(10)
    with raw:
        raw.connect(("127.0.0.1", store.sidecar.port))
        for piece in pieces:
            raw.sendall(piece)
        yield raw


def read_all(raw):
    """Everything until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := raw.recv(65536):
            received += piece
    return received


def closed(store, reason):
    text = store.get("/metrics").text
    name = f'routereplay_http_closed_total{{reason="{reason}"}} '
    return next((float(x[len(name) :]) for x in text.splitlines() if x.startswith(name)), 0.0)


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"", b"", "idle"),
        (b"\r\n", b"408", "head"),
        (b"POS", b"408", "head"),
        (HEAD + b"X-Half: ", b"408", "head"),
        (HEAD + b"Content-Length: 1000\r\n\r\nRRF", b"408", "body"),
    ],
)
def test_a_request_that_stalls_is_sent_away(store, sent, status, reason):
    before = closed(store, reason)
    began = time.monotonic()
    with connected(store, sent) as raw:
        answer = read_all(raw)

    assert 0.4 <= time.monotonic() - began < 5
    assert answer[9:12] == status
    assert status == b"" or b'"too_slow"' in answer
    assert closed(store, reason) == before + 1


def test_a_body_below_the_least_rate_is_sent_away(store):
    with connected(store, HEAD + b"Content-Length: 1000000\r\n\r\n") as raw:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 8:
                raw.sendall(b"x" * 500)
                time.sleep(0.05)
        answer = read_all(raw)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert until(lambda: "routereplay_ingest_inflight_bytes 0.0" in store.get("/metrics").text)


def test_a_body_that_was_refused_before_it_came_has_one_answer(store):
    before = closed(store, "unwanted")
    with connected(store, HEAD + b"Content-Length: 1000000000\r\n\r\n") as raw:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(80):
                raw.sendall(bytes(1 << 20))
        answers = read_all(raw)

    assert answers.startswith(b"HTTP/1.1 413 ")
    assert answers.count(b"HTTP/1.1 ") == 1
    assert closed(store, "unwanted") == before + 1


def test_a_slow_body_above_the_least_rate_is_taken(store):
    body = make_upload("slow-but-steady", prompt_len=20_000, chunk_rows=5000).body
    with connected(store, HEAD + b"Content-Length: %d\r\n\r\n" % len(body)) as raw:
        for at in range(0, len(body), 16384):
            raw.sendall(body[at : at + 16384])
            time.sleep(0.1)
        answer = raw.recv(65536)

    assert len(body) / 16384 * 0.1 > 1
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_client_that_does_not_read_its_answer_is_cut_off(store):
    store.put(make_upload("long", prompt_len=120_000, num_layers=60, topk=1, chunk_rows=10_000))
    before = closed(store, "response")
    ask = b"GET /v1/requests/long/routes HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(store, ask, rcvbuf=4096):
        assert until(lambda: closed(store, "response") == before + 1)


def test_a_slow_reader_above_the_least_rate_gets_all_of_it(store):
    store.put(make_upload("middling", prompt_len=40_000, num_layers=60, topk=1, chunk_rows=10_000))
    ask = b"GET /v1/requests/middling/routes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with connected(store, ask, rcvbuf=65536) as raw:
        received = 0
        while piece := raw.recv(65536):
            received += len(piece)
            time.sleep(0.05)

    assert received > 40_000 * 60


@pytest.mark.parametrize(
    "head",
    [
        GET[:-2] + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n",
        GET[:-2] + b"X-Long: " + b"y" * 20_000 + b"\r\n\r\n",
        GET[:-2] + b"X-Unending: " + b"y" * 20_000,
        b"GET /livez?" + b"y" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_headers_over_the_limit_are_refused(store, head):
    with connected(store, head) as raw:
        answer = read_all(raw)

    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"headers_too_large"' in answer


@pytest.mark.parametrize(
    "lengths",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: identity, chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
    ],
)
def test_a_length_that_means_two_things_is_refused(store, lengths):
    with connected(store, HEAD + lengths + b"\r\n0\r\n\r\n" + GET) as raw:
        answer = read_all(raw)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"alive" not in answer


def test_pipelined_requests_are_answered_in_order(store):
    with connected(store, GET * 3) as raw:
        answer = b""
        while answer.count(b'{"status":"alive"}') < 3:
            answer += raw.recv(65536)

    assert answer.count(b"HTTP/1.1 200 OK") == 3


def test_a_request_behind_one_that_waits_cannot_end_it(store):
    wait = b"GET /v1/requests/nobody/routes?wait=2 HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(store, wait, b"GET /li") as raw:
        answer = raw.recv(65536)

    assert answer.startswith(b"HTTP/1.1 404 ")


def test_one_connection_too_many_is_told_so(store):
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(connected(store))
        raw = stack.enter_context(connected(store))
        assert read_all(raw).startswith(b"HTTP/1.1 503 ")
    assert until(lambda: httpx.get(f"{store.sidecar.url}/livez").status_code == 200)
