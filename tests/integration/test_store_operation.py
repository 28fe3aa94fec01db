"""What an operator meets: health, metrics, pages without a network, logs without payloads."""

import json
import re

import pytest
from support.frames import make_upload
from support.route_store import running_store
from support.store_processes import Sidecar, until


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    settings = {"durability": "memory", "max_inflight_bytes": 1000, "log_level": "DEBUG"}
    with running_store("embedded", folder, **settings) as running:
        yield running


def test_it_is_alive_and_ready(store):
    assert store.get("/livez").json() == {"status": "alive"}
    assert store.get("/readyz").json() == {"status": "ready"}


def test_info_names_versions_limits_and_the_engine(store):
    info = store.get("/v1/info").json()

    assert (info["wire_version"], info["durability"]) == (1, "memory")
    assert info["limits"]["value_bytes"] == 1024 * 1024
    assert info["engine"]["kind"] == "embedded"
    assert info["engine"]["maxmemory"] > 0


def test_metrics_count_frames_by_kind_and_outcome(store):
    store.put(make_upload("counted", seed=1))
    store.post(make_upload("uncounted", seed=2).seal_frame)
    text = store.get("/metrics").text

    assert 'routereplay_ingest_frames_total{kind="chunk",status="staged"} 4.0' in text
    assert 'routereplay_ingest_frames_total{kind="seal",status="sealed"} 1.0' in text
    assert 'routereplay_ingest_refused_total{code="incomplete"} 1.0' in text


def test_metrics_name_routes_and_never_ids(store):
    store.get("/v1/requests/very-secret-id/routes")
    text = store.get("/metrics").text

    assert 'route="/v1/requests/{request_id}/routes"' in text
    assert "very-secret-id" not in text


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_needs_nothing_from_elsewhere_and_may_run_only_itself(store, path):
    response = store.get(path)
    policy = dict(
        rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; ")
    )

    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert re.findall(r"""\ssrc=|href="https?:|@import|url\(.?http""", response.text) == []
    assert policy["default-src"] == "'none'"
    assert re.fullmatch(r"'none'|'sha256-[\w+/=]+'", policy["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/=]+'", policy["style-src"])
    assert (policy["connect-src"], policy["frame-ancestors"]) == ("'self'", "'none'")


def test_the_docs_page_lists_every_endpoint(store):
    page = store.get("/docs").text

    for path, operations in store.get("/openapi.json").json()["paths"].items():
        for method in operations:
            assert f"{method.upper()}</span><code>{path}</code>" in page


def test_an_unknown_endpoint_is_not_taken_for_an_unknown_id(store):
    response = store.get("/v1/request/typo")

    assert (response.status_code, response.json()["code"]) == (404, "no_such_endpoint")


def test_a_body_that_finds_no_room_is_sent_away_before_it_is_read(store):
    import socket

    head = "POST /v1/ingest HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n"
    with socket.create_connection(("127.0.0.1", store.sidecar.port), timeout=10) as stalled:
        stalled.sendall(head.encode())
        gauge = "routereplay_ingest_inflight_bytes 900.0"
        until(lambda: gauge in store.get("/metrics").text)
        response = store.post(make_upload("crowded", seed=3).body)

    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert int(response.headers["retry-after"]) >= 1
    until(lambda: "routereplay_ingest_inflight_bytes 0.0" in store.get("/metrics").text)


def test_the_log_is_json_with_ids_and_traces_and_without_payloads(store):
    upload = store.put(make_upload("logged", seed=4, trajectory_id="logged-talk"))
    trace = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    store.http.get("/v1/requests/logged/routes?tokens=none", headers=trace)
    store.post(make_upload("logged-lost", seed=5).drop_frame("queue_full"))

    lines = [json.loads(line) for line in store.sidecar.log().splitlines()]

    assert {"time", "level", "logger", "message"} <= set(lines[0])
    (sealed,) = [
        line for line in lines if (line["message"], line.get("request_id")) == ("sealed", "logged")
    ]
    assert (sealed["request_id"], sealed["trajectory_id"]) == ("logged", "logged-talk")
    (refused,) = [line for line in lines if line.get("trace_id") and line.get("status") == "400"]
    assert (refused["request_id"], refused["trace_id"]) == ("logged", "ab" * 16)
    (lost,) = [line for line in lines if line.get("reason") == "queue_full"]
    assert lost["request_id"] == "logged-lost"
    assert str(upload.token_ids.tolist())[1:-1] not in store.sidecar.log()


def test_a_sidecar_whose_engine_is_not_there_yet_lives_and_is_not_ready(tmp_path):
    sidecar = Sidecar(tmp_path, redis_url=f"unix://{tmp_path}/nothing.sock")
    sidecar.start()
    try:
        assert not sidecar.is_ready()
        assert "not there yet" in sidecar.log()
    finally:
        sidecar.stop()
