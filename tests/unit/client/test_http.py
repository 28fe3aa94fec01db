"""The connections under the client: what they do when a server is not well-behaved."""

import contextlib
import os
import socket
import threading

import numpy as np
import pytest

from routereplay.client._http import Connections
from routereplay.wire.errors import StoreTimeout, StoreUnreachable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@contextlib.contextmanager
def scripted(*connections, path=None):
    """A server that gives each new connection its list of answers, one a request, and hangs up.

    Yields its address and the list of what it received.
    """
    received = []
    if path:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        url = f"unix://{path}"
    else:
        listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def run():
        for answers in connections:
            connection, _ = listener.accept()
            with connection:
                for answer in answers:
                    received.append(connection.recv(65536))
                    connection.sendall(answer)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    with contextlib.closing(listener):
        yield url, received
    thread.join(5)


def exchange(url, **options):
    with contextlib.closing(Connections(url)) as connections:
        return connections.exchange("GET", "/x", timeout_s=2.0, **options)


def test_an_answer_that_is_cut_short_is_no_answer():
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"
    with (
        scripted([cut]) as (url, _),
        pytest.raises(StoreUnreachable, match="after 9 of 100 bytes"),
    ):
        exchange(url)


def test_a_connection_is_kept_and_one_that_the_server_closed_is_replaced_once():
    with (
        scripted([OK, OK], [OK]) as (url, received),
        contextlib.closing(Connections(url)) as connections,
    ):
        for _ in range(3):
            answer = connections.exchange("GET", "/x", timeout_s=2.0)
            assert bytes(answer.body) == b"hello"
    assert len(received) == 3


def test_a_forked_process_does_not_speak_on_its_parents_connections():
    """Two processes on one connection would each take the other's answers for its own."""
    with scripted([OK]) as (url, _), contextlib.closing(Connections(url)) as connections:
        connections.exchange("GET", "/parent", timeout_s=2.0)
        if not (child := os.fork()):
            _, is_reused = connections._take()
            os._exit(is_reused)
        _, status = os.waitpid(child, 0)

        assert os.waitstatus_to_exitcode(status) == 0
        assert connections._take()[1], "the parent's own is still there"


def test_a_fresh_connection_that_breaks_is_not_tried_again():
    with scripted([b""], [OK]) as (url, received):
        with pytest.raises(StoreUnreachable, match="RemoteDisconnected"):
            exchange(url)
        assert len(received) == 1
        exchange(url)


def test_a_refusal_that_comes_before_the_body_was_read_is_heard():
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"
    with scripted([refusal]) as (url, _), contextlib.closing(Connections(url)) as connections:
        body = [np.zeros(32 << 20, np.uint8).data]
        answer = connections.exchange("POST", "/x", timeout_s=5.0, body=body)
    assert (answer.status, bytes(answer.body)) == (413, b"big")


def test_bodies_are_received_into_the_room_that_is_given():
    room = memoryview(bytearray(16))
    with scripted([OK]) as (url, _):
        answer = exchange(url, room=lambda nbytes: room[3 : 3 + nbytes])
    assert bytes(room)[:9] == b"\0\0\0hello\0"
    assert bytes(answer.body) == b"hello"


def test_a_chunked_answer_is_read_as_well():
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    with scripted([chunked]) as (url, _):
        assert bytes(exchange(url).body) == b"hello"


def test_small_parts_of_a_body_travel_together_and_in_order():
    with scripted([OK]) as (url, received):
        exchange(url, body=[b"a" * 10, b"b" * 10, memoryview(b"c" * 10)], headers={"X-Name": "v"})
    head, body = received[0].split(b"\r\n\r\n")
    assert body in (b"", b"a" * 10 + b"b" * 10 + b"c" * 10)
    assert b"Content-Length: 30" in head
    assert b"X-Name: v" in head


def test_a_unix_socket_is_an_address(tmp_path):
    with scripted([OK], path=str(tmp_path / "s")) as (url, received):
        assert bytes(exchange(url).body) == b"hello"
    assert received[0].startswith(b"GET /x HTTP/1.1")


def test_silence_is_a_timeout_and_nobody_there_is_unreachable():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with (
            contextlib.closing(Connections(url)) as connections,
            pytest.raises(StoreTimeout, match="did not answer in time"),
        ):
            connections.exchange("GET", "/x", timeout_s=0.1)
    with pytest.raises(StoreUnreachable, match="Is `routereplay serve` running there"):
        exchange(url)


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no address of a store"):
        Connections("redis://127.0.0.1")
