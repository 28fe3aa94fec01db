"""A damaged value is never served, and an engine that is away is a 503 that passes."""

import signal
import socket

import httpx
import numpy as np
import pytest
from support.frames import make_upload
from support.route_store import decode_routes
from support.store_processes import until

BOTH = pytest.mark.parametrize(
    "own_store", ["embedded", pytest.param("redis7", marks=pytest.mark.redis)], indirect=True
)


def assert_corrupt(response):
    assert (response.status_code, response.json()["code"]) == (502, "corrupt")


def assert_unavailable(response, code="unavailable"):
    assert (response.status_code, response.json()["code"]) == (503, code)
    assert 1 <= int(response.headers["retry-after"]) <= 5


@pytest.mark.parametrize("pattern", ["c1:*", "k:*"])
@pytest.mark.parametrize("damage", ["bit", "cut", "grown"])
def test_a_damaged_value_is_corrupt_and_never_served(store, pattern, damage):
    request_id = f"damaged-{pattern[0]}-{damage}"
    store.put(make_upload(request_id, seed=1))
    (key,) = store.engine.keys(f"rr:*:b:0_{request_id}-1:{pattern}")
    value = bytearray(store.engine.get(key))
    if damage == "bit":
        value[5] ^= 1
    store.engine.set(key, {"cut": value[:-1], "grown": value + b"x"}.get(damage, bytes(value)))
    store.engine.expire(key, 600)

    assert_corrupt(store.get(f"/v1/requests/{request_id}/routes"))
    assert_corrupt(store.get(f"/v1/requests/{request_id}/routes", format="json"))


def test_a_damaged_manifest_is_corrupt(store):
    store.put(make_upload("damaged-manifest", seed=2))
    (key,) = store.engine.keys("rr:*:m:damaged-manifest:0")
    body = bytearray(store.engine.hget(key, "body"))
    body[10] ^= 1
    store.engine.hset(key, "body", bytes(body))

    assert_corrupt(store.get("/v1/requests/damaged-manifest/routes"))


def test_a_long_record_that_is_damaged_is_refused_before_its_first_byte(store):
    upload = make_upload(
        "long-damaged", seed=3, prompt_len=60_000, num_layers=100, topk=2, chunk_rows=5000
    )
    for frame in [*upload.chunk_frames, upload.seal_frame]:
        store.post(frame)
    (key,) = store.engine.keys("rr:*:b:0_long-damaged-3:c11:*")
    store.engine.setrange(key, 0, b"\xff")

    assert_corrupt(store.get("/v1/requests/long-damaged/routes"))


def test_a_body_without_a_length_is_refused(store):
    response = store.http.post("/v1/ingest", content=iter([b"abc"]))

    assert (response.status_code, response.json()["code"]) == (411, "length_required")


def test_a_body_over_the_limit_is_refused_before_it_is_sent(store):
    head = f"POST /v1/ingest HTTP/1.1\r\nHost: x\r\nContent-Length: {65 * 1024 * 1024}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", store.sidecar.port), timeout=10) as raw:
        raw.sendall(head.encode())
        answer = b""
        while not answer.endswith(b"}"):
            answer += raw.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"too_large"' in answer


def test_a_client_that_leaves_in_mid_body_stores_nothing(store):
    body = make_upload("cut-off", seed=4).body
    before = store.contents()
    head = f"POST /v1/ingest HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", store.sidecar.port), timeout=10) as raw:
        raw.sendall(head + body[:-64])
    gauge = "routereplay_ingest_inflight_bytes 0.0"

    assert until(lambda: gauge in store.get("/metrics").text)
    assert store.contents() == before


def test_a_full_engine_says_so_keeps_what_it_has_and_recovers(store):
    kept = store.put(make_upload("kept-when-full", seed=5))
    store.engine.config_set("maxmemory", 1024)
    try:
        refused = store.post(make_upload("no-room", seed=6).body)
        assert_unavailable(refused, "store_full")
        _, (rows,), _ = decode_routes(store.get("/v1/requests/kept-when-full/routes"))
        assert np.array_equal(rows, kept.experts)
        # A trainer must learn of a loss, and room must be made, just then.
        assert store.http.delete("/v1/requests/kept-when-full").status_code == 200
    finally:
        store.engine.config_set("maxmemory", 0)
    store.put(make_upload("no-room", seed=6))


def test_a_read_only_engine_is_unavailable_and_recovers(store):
    if store.engine.info("cluster").get("cluster_enabled"):
        pytest.skip("a node of a cluster becomes a replica by a failover: tests/faults, D15")
    store.put(make_upload("readable", seed=7))
    store.engine.replicaof("127.0.0.1", "1")
    try:
        until(lambda: store.engine.info("replication")["role"] == "slave")
        assert_unavailable(store.post(make_upload("read-only", seed=8).body))
        assert store.get("/v1/requests/readable/routes").status_code == 200
    finally:
        store.engine.replicaof("NO", "ONE")
    store.put(make_upload("read-only", seed=8))


@BOTH
def test_a_killed_engine_is_unavailable_and_nothing_acknowledged_is_lost(own_store):
    upload = own_store.put(make_upload("survivor", seed=9))
    pid = own_store.engine.info("server")["process_id"]
    if own_store.debian is not None:
        own_store.debian.kill()
    else:
        import os

        os.kill(pid, signal.SIGKILL)

    assert_unavailable(own_store.get("/v1/requests/survivor/routes"))
    assert own_store.get("/livez").status_code == 200
    if own_store.debian is not None:
        assert_unavailable(own_store.get("/readyz"))
        assert_unavailable(own_store.post(make_upload("during", seed=10).body))
        own_store.debian.start()

    assert until(own_store.sidecar.is_ready, timeout_s=20)
    _, (rows,), _ = decode_routes(own_store.get("/v1/requests/survivor/routes"))
    assert np.array_equal(rows, upload.experts)
    own_store.put(make_upload("during", seed=10))


@BOTH
def test_a_killed_sidecar_loses_nothing_that_it_acknowledged(own_store):
    upload = own_store.put(make_upload("outlives-us", seed=11))
    own_store.sidecar.signal(signal.SIGKILL)
    own_store.sidecar.wait()
    own_store.sidecar.start()

    assert until(own_store.sidecar.is_ready, timeout_s=20)
    answer = httpx.get(f"{own_store.sidecar.url}/v1/requests/outlives-us/routes")
    _, (rows,), _ = decode_routes(answer)
    assert np.array_equal(rows, upload.experts)


@BOTH
def test_a_stopping_sidecar_sends_waiting_readers_away_and_ends(own_store):
    with socket.create_connection(("127.0.0.1", own_store.sidecar.port), timeout=10) as raw:
        raw.sendall(b"GET /v1/requests/x/routes?wait=60 HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: "routereplay_waiting_requests 1.0" in own_store.get("/metrics").text)
        own_store.sidecar.signal(signal.SIGTERM)
        answer = raw.recv(65536)

    assert answer.startswith(b"HTTP/1.1 503 ")
    own_store.sidecar.wait(timeout_s=10)


@BOTH
def test_a_stopping_sidecar_ends_in_time_even_if_an_upload_stalls(own_store):
    with socket.create_connection(("127.0.0.1", own_store.sidecar.port), timeout=10) as raw:
        raw.sendall(b"POST /v1/ingest HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nRRF")
        gauge = "routereplay_ingest_inflight_bytes 1000.0"
        until(lambda: gauge in own_store.get("/metrics").text)
        own_store.sidecar.signal(signal.SIGTERM)

        own_store.sidecar.wait(timeout_s=10)
