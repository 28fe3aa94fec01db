"""Bodies come in any pieces, and what follows them on the connection is the next request."""

import socket
import time

import numpy as np
from support.frames import make_upload
from support.route_store import decode_routes
from support.store_processes import until

from routereplay.wire import MEDIA_TYPE


def head(store, length, **headers):
    lines = [
        "POST /v1/ingest HTTP/1.1",
        f"Host: 127.0.0.1:{store.sidecar.port}",
        f"Content-Type: {MEDIA_TYPE}",
        f"Content-Length: {length}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def long_upload(name, seed):
    return make_upload(
        name, seed=seed, prompt_len=2000, completion_len=3, num_layers=48, topk=8, chunk_rows=300
    )


def connected(store):
    return socket.create_connection(("127.0.0.1", store.sidecar.port), 10)


def answers(connection, count):
    received = b""
    while received.count(b"HTTP/1.1 ") < count or not received.endswith(b"}"):
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return received


def test_bodies_in_any_pieces_are_stored_and_the_connection_goes_on(store):
    uploads = [long_upload(f"pieces-{number}", number) for number in range(3)]
    draw = np.random.default_rng(7)
    with connected(store) as connection:
        for upload in uploads:
            message = head(store, len(upload.body)) + upload.body
            cuts = sorted(draw.integers(0, len(message), 6))
            for start, stop in zip([0, *cuts], [*cuts, len(message)], strict=True):
                connection.sendall(message[start:stop])
                time.sleep(0.01)
            assert answers(connection, 1).startswith(b"HTTP/1.1 200")
    for upload in uploads:
        path = f"/v1/requests/{upload.manifest.request_id}/routes"
        _, (rows,), _ = decode_routes(store.get(path))
        assert np.array_equal(rows, upload.experts)


def test_requests_that_are_sent_at_once_are_answered_in_order(store):
    first, second = long_upload("at-once-0", 10), long_upload("at-once-1", 11)
    livez = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(store) as connection:
        connection.sendall(
            livez
            + head(store, len(first.body))
            + first.body
            + livez
            + head(store, len(second.body))
            + second.body
            + livez
        )
        received = answers(connection, 5)
    assert received.count(b"HTTP/1.1 200") == 5
    assert received.count(b"alive") == 3
    order = [received.index(b"alive"), received.index(b"sealed")]
    assert order == sorted(order)


def test_an_upload_that_is_cut_off_leaves_nothing(store):
    upload = long_upload("cut-off", 20)
    before = store.contents()
    with connected(store) as connection:
        connection.sendall(head(store, len(upload.body)) + upload.body[:-100])
        time.sleep(0.2)
    assert store.get("/v1/requests/cut-off").status_code == 404
    assert store.contents() == before
    metric = "routereplay_ingest_inflight_bytes 0.0"
    until(lambda: metric in store.get("/metrics").text)


def test_a_client_that_waits_for_the_go_ahead_is_given_it(store):
    upload = long_upload("expects", 30)
    with connected(store) as connection:
        connection.sendall(head(store, len(upload.body), Expect="100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(upload.body)
        assert answers(connection, 1).startswith(b"HTTP/1.1 200")
