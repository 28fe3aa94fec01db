"""The exporter against a real HTTP server: up, down, slow, refusing, overloaded."""

import contextlib
import os
import socket
import threading
import time
from collections import deque
from contextlib import closing

import msgspec
import numpy as np
import pytest

from routereplay.patches.vllm.exporter import Exporter
from routereplay.patches.vllm.ledger import Amount, Ledger
from routereplay.patches.vllm.outbox import Outbox
from routereplay.patches.vllm.settings import Settings
from routereplay.wire.digest import digest
from routereplay.wire.frame import iter_frames
from routereplay.wire.records import Chunk, Drop, FrameResult, IngestResult, Seal

KIB = 1024


def result_body(results):
    return msgspec.json.encode(IngestResult(results=tuple(results)))


@pytest.fixture
def make_exporter():
    made = []

    def make(url, **settings):
        exporter = Exporter(Settings(url, **{"flush_age_s": 0.05, **settings}))
        made.append(exporter)
        return exporter

    yield make
    for exporter in made:
        exporter.close(1.0)
        assert exporter.stats().balance == Amount(0, 0)


def begin(exporter, info, *arrays):
    """Do what the recorder does: open a record, ask for room, append; returns `put`."""
    source = deque()
    exporter.open(info, source)

    def put(array):
        assert exporter.admit(1, len(array), len(array) * info.model.row_nbytes)
        source.append(array)

    for array in arrays:
        put(array)
    return put


def send(exporter, info, arrays, ending):
    begin(exporter, info, *arrays)
    exporter.seal(info, ending)


def eventually(look, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_a_record_arrives_as_chunks_and_a_seal(store, make_exporter, make_info, make_rows, ending):
    exporter = make_exporter(store.url)
    rows = make_rows(5)
    send(exporter, make_info(), [rows[:3], rows[3:4], rows[4:]], ending)
    store.wait_seals(1)

    payload = b"".join(f.payload for f in store.frames if isinstance(f.header, Chunk))
    (seal,) = store.headers_of(Seal)
    manifest = seal.manifest
    assert payload == rows.tobytes()
    assert (manifest.rows, manifest.prompt_len, manifest.completion_len) == (5, 4, 2)
    assert manifest.complete
    tokens = np.array([1, 2, 3, 4, 5, 6], "<i4").tobytes()
    assert bytes(store.frames[-1].payload) == tokens
    assert manifest.token_digest == digest(tokens)
    stats = eventually(lambda: (s := exporter.stats()).records and s)
    assert stats.records == {"sealed": 1}
    assert stats.acked == Amount(5, 40)


def test_rows_of_many_steps_are_gathered_to_few_chunks(
    store, make_exporter, make_info, make_rows, ending
):
    exporter = make_exporter(store.url, flush_age_s=30.0)
    send(exporter, make_info(), [make_rows(1, i) for i in range(5)], ending)
    store.wait_seals(1)

    assert [chunk.rows for chunk in store.headers_of(Chunk)] == [5]


def test_rows_leave_before_the_request_ends(store, make_exporter, make_info, make_rows):
    exporter = make_exporter(store.url)
    begin(exporter, make_info(), make_rows(2))
    store.wait_for(lambda: store.frames)

    assert [chunk.rows for chunk in store.headers_of(Chunk)] == [2]


def test_the_longer_a_request_lasts_the_less_often_its_rows_are_framed(make_info, make_rows):
    settings = Settings("http://store", flush_age_s=1.0)
    outbox = Outbox(settings, Ledger(settings))
    source = deque()
    outbox.open(make_info(), source)
    for second in range(2 * 3600):
        source.append(make_rows(1))
        outbox.flush(now=float(second))

    # The seal lists every chunk, and its header is bounded.
    assert 100 < len(outbox.waiting) < 1200


def test_a_large_prompt_is_cut_into_chunks_of_bounded_size(
    store, make_exporter, make_info, make_rows, ending
):
    exporter = make_exporter(store.url, chunk_bytes=4 * KIB, post_bytes=64 * KIB)
    info = make_info(prompt=range(9999))
    send(exporter, info, [make_rows(10_000)], ending)
    store.wait_seals(1)

    chunks = store.headers_of(Chunk)
    assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
    assert sum(chunk.rows for chunk in chunks) == 10_000
    assert max(chunk.rows for chunk in chunks) * 8 <= 4 * KIB
    assert chunks[1].first_row == chunks[0].rows
    assert max(len(body) for body in store.bodies) <= 64 * KIB
    assert len(store.bodies) > 1
    assert store.headers_of(Seal)[0].manifest.chunks[-1].digest == chunks[-1].digest


def test_the_key_is_sent_as_bearer(store, make_exporter, make_info, make_rows, ending):
    exporter = make_exporter(store.url, api_key="secret")
    send(exporter, make_info(), [make_rows(5)], ending)
    store.wait_seals(1)

    assert store.headers[0]["Authorization"] == "Bearer secret"


def test_an_overloaded_store_gets_the_same_bytes_again_and_not_too_soon(
    store, make_exporter, make_info, make_rows, ending
):
    def overloaded(handler, frames):
        handler.reply(503, Retry_After="1")
        return True

    store.answers = [overloaded]
    exporter = make_exporter(store.url)
    start = time.monotonic()
    send(exporter, make_info(), [make_rows(5)], ending)
    store.wait_seals(1)

    assert time.monotonic() - start >= 1.0
    assert store.bodies[0] == store.bodies[1]
    assert exporter.stats().store_errors == 1
    eventually(lambda: exporter.stats().records == {"sealed": 1})


def test_a_store_that_comes_late_gets_everything(
    make_store, make_exporter, make_info, make_rows, ending
):
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    exporter = make_exporter(f"http://127.0.0.1:{port}")
    for number in range(3):
        send(exporter, make_info(number), [make_rows(5)], ending)
    eventually(lambda: exporter.stats().store_errors)
    held = exporter.stats()
    make_store(port).wait_seals(3)

    assert held.queued.rows + held.in_flight.rows == 15
    eventually(lambda: exporter.stats().acked == Amount(15, 120))


def test_a_store_that_stays_away_costs_the_record_after_the_deadline(
    store, make_exporter, make_info, make_rows, ending
):
    def away(handler, frames):
        handler.reply(503)
        return True

    store.answers = [away] * 4
    exporter = make_exporter(store.url, retry_deadline_s=0.1)
    send(exporter, make_info(), [make_rows(5)], ending)
    store.wait_for(lambda: store.frames)

    (drop,) = store.headers_of(Drop)
    assert (drop.request_id, drop.reason, drop.rows) == ("cmpl-0", "store_unreachable", 5)
    assert store.headers_of(Chunk) == []
    assert exporter.stats().dropped == {"store_unreachable": Amount(5, 40)}
    assert exporter.stats().records == {"dropped:store_unreachable": 1}


def test_a_refused_record_is_dropped_and_the_others_of_the_post_are_kept(
    store, make_exporter, make_info, make_rows, ending
):
    def refuse_first(handler, frames):
        results = [
            FrameResult(status="refused", code="invalid_routes", message="no")
            if "cmpl-0" in (getattr(f.header, "request_id", ""), request_of(f.header))
            else FrameResult(status="staged")
            for f in frames
        ]
        handler.reply(422, result_body(results))
        return True

    store.answers = [refuse_first]
    exporter = make_exporter(store.url, flush_age_s=30.0)
    begin(exporter, make_info(0), make_rows(5))
    begin(exporter, make_info(1), make_rows(5))
    exporter.seal(make_info(0), ending)
    exporter.seal(make_info(1), ending)
    store.wait_for(lambda: any(isinstance(f.header, Drop) for f in store.frames))

    stats = exporter.stats()
    assert stats.dropped == {"rejected:invalid_routes": Amount(5, 40)}
    assert stats.acked == Amount(5, 40)
    assert stats.records == {"dropped:rejected:invalid_routes": 1, "sealed": 1}
    assert [drop.request_id for drop in store.headers_of(Drop)] == ["cmpl-0"]
    assert len(store.bodies) == 2, "what was refused is never sent again"


def test_a_conflict_leaves_no_note_of_loss(store, make_exporter, make_info, make_rows, ending):
    def conflict(handler, frames):
        results = [
            FrameResult(status="refused", code="conflict")
            if isinstance(f.header, Seal)
            else FrameResult(status="staged")
            for f in frames
        ]
        handler.reply(409, result_body(results))
        return True

    store.answers = [conflict]
    exporter = make_exporter(store.url, flush_age_s=30.0)
    send(exporter, make_info(), [make_rows(5)], ending)
    eventually(lambda: exporter.stats().records)
    send(exporter, make_info(1), [make_rows(5)], ending)
    store.wait_seals(1)

    assert exporter.stats().records["dropped:rejected:conflict"] == 1
    assert store.headers_of(Drop) == []


def test_one_frame_that_the_store_has_no_room_for_is_sent_again_with_its_seal(
    store, make_exporter, make_info, make_rows, ending
):
    def no_room(handler, frames):
        chunk = FrameResult(status="refused", code="store_full")
        seal = FrameResult(status="refused", code="incomplete")
        results = [seal if isinstance(f.header, Seal) else chunk for f in frames]
        handler.reply(409, result_body(results))
        return True

    store.answers = [no_room]
    exporter = make_exporter(store.url, flush_age_s=30.0)
    send(exporter, make_info(), [make_rows(5)], ending)
    store.wait_seals(1)

    assert store.bodies[0] == store.bodies[1]
    assert exporter.stats().dropped == {}


@pytest.mark.parametrize(("status", "code"), [(401, "unauthorized"), (400, "bad_version")])
def test_a_store_that_does_not_talk_to_us_gets_everything_when_it_does(
    store, make_exporter, make_info, make_rows, ending, status, code
):
    def refuse(handler, frames):
        handler.reply(status, msgspec.json.encode({"code": code}))
        return True

    store.answers = [refuse] * 3
    exporter = make_exporter(store.url, flush_age_s=30.0, retry_deadline_s=0.01)
    send(exporter, make_info(), [make_rows(5)], ending)
    store.wait_seals(1)

    eventually(lambda: exporter.stats().acked == Amount(5, 40))
    assert exporter.stats().dropped == {}


def test_a_key_that_was_changed_in_its_file_is_read_again(
    store, make_exporter, make_info, make_rows, ending, tmp_path
):
    key = tmp_path / "key"
    key.write_text("old\n")

    def rotate(handler, frames):
        key.write_text("new\n")
        handler.reply(401, b'{"code": "unauthorized"}')
        return True

    store.answers = [rotate]
    exporter = make_exporter(store.url, flush_age_s=30.0, api_key_file=key)
    send(exporter, make_info(), [make_rows(5)], ending)
    store.wait_seals(1)

    assert [h["Authorization"] for h in store.headers] == ["Bearer old", "Bearer new"]


def test_a_post_that_is_refused_as_a_whole_costs_only_the_frame_that_is_wrong(
    store, make_exporter, make_info, make_rows, ending
):
    def too_large(handler, frames):
        if len(frames) == 1 and request_of(frames[0].header) != "cmpl-1":
            store.answers.insert(0, too_large)
            return False
        store.answers.insert(0, too_large)
        handler.reply(413, b'{"code": "too_large"}')
        return True

    store.answers = [too_large]
    exporter = make_exporter(store.url, flush_age_s=30.0)
    for number in range(3):
        send(exporter, make_info(number), [make_rows(5)], ending)
    eventually(lambda: exporter.stats().records.get("sealed") == 2)

    assert exporter.stats().records["dropped:rejected:too_large"] == 1


def test_a_frame_that_was_damaged_on_its_way_is_sent_again_but_not_for_ever(
    store, make_exporter, make_info, make_rows, ending
):
    def damaged(handler, frames):
        handler.reply(400, b'{"code": "malformed_frame"}')
        return True

    store.answers = [damaged] * 3
    exporter = make_exporter(store.url, flush_age_s=30.0)
    send(exporter, make_info(0), [make_rows(5)], ending)
    store.wait_seals(1)
    assert exporter.stats().dropped == {}
    store.answers = [damaged] * 40
    send(exporter, make_info(1), [make_rows(5)], ending)

    reason = "dropped:rejected:malformed_frame"
    eventually(lambda: exporter.stats().records.get(reason) == 1, 20)


def test_something_else_that_answers_200_is_not_taken_for_the_store(
    store, make_exporter, make_info, make_rows, ending
):
    def proxy(handler, frames):
        handler.reply(200, b"<html>welcome</html>")
        return True

    store.answers = [proxy]
    exporter = make_exporter(store.url)
    send(exporter, make_info(), [make_rows(5)], ending)
    store.wait_seals(1)

    assert exporter.stats().store_errors == 1
    assert exporter.stats().dropped == {}


def test_a_slow_store_never_holds_up_the_caller(store, make_exporter, make_info, make_rows):
    def slow(handler, frames):
        time.sleep(1.0)
        return False

    store.answers = [slow]
    exporter = make_exporter(store.url)
    put = begin(exporter, make_info(prompt=range(10_000)), make_rows(1))
    eventually(lambda: store.bodies)
    start = time.perf_counter()
    for first in range(1000):
        put(make_rows(1, first))

    assert time.perf_counter() - start < 0.5


def test_more_than_the_queue_holds_is_dropped_and_counted(
    store, make_exporter, make_info, make_rows, ending
):
    exporter = make_exporter(store.url, queue_bytes=100)
    large = make_info(1)
    begin(exporter, make_info(0), make_rows(5))
    begin(exporter, large)
    assert not exporter.admit(1, 50, 400)
    exporter.ledger.discard(50, 400, exporter.full_reason)
    exporter.drop(large, exporter.full_reason)
    exporter.seal(make_info(0), ending)
    store.wait_seals(1)
    store.wait_for(lambda: store.headers_of(Drop))

    assert [drop.reason for drop in store.headers_of(Drop)] == ["queue_full"]
    assert exporter.stats().dropped == {"queue_full": Amount(50, 400)}


@pytest.mark.parametrize(
    "bad",
    [
        np.full((2, 4, 2), 16, "uint8"),
        np.zeros((2, 4, 3), "uint8"),
        np.zeros((2, 4, 2), "uint16"),
    ],
    ids=["expert out of range", "other top-k", "other dtype"],
)
def test_routes_that_cannot_be_the_models_are_lost_aloud(
    store, make_exporter, make_info, make_rows, ending, bad
):
    exporter = make_exporter(store.url, flush_age_s=30.0)
    send(exporter, make_info(), [make_rows(3), bad], ending)
    store.wait_for(lambda: store.headers_of(Drop))

    assert store.headers_of(Drop)[0].reason == "invalid_routes"
    assert store.headers_of(Seal) == []
    assert exporter.stats().dropped["invalid_routes"].rows == 5


def test_closing_sends_what_is_left_and_reports_open_records(
    store, make_exporter, make_info, make_rows, ending
):
    exporter = make_exporter(store.url, flush_age_s=30.0)
    send(exporter, make_info(0), [make_rows(5)], ending)
    begin(exporter, make_info(1), make_rows(2))
    exporter.close(5.0)

    assert exporter.stats().records == {"sealed": 1, "dropped:shutdown": 1}
    assert [drop.request_id for drop in store.headers_of(Drop)] == ["cmpl-1"]
    assert exporter.stats().dropped == {"shutdown": Amount(2, 16)}


def test_closing_takes_no_longer_than_it_may_and_counts_the_rest(
    make_exporter, make_info, make_rows, ending
):
    exporter = make_exporter("http://127.0.0.1:9")
    send(exporter, make_info(), [make_rows(5)], ending)
    start = time.monotonic()
    exporter.close(0.5)

    assert time.monotonic() - start < 2.0
    assert exporter.stats().dropped == {"shutdown": Amount(5, 40)}


def test_rows_that_come_after_the_end_are_counted_as_lost(make_exporter):
    exporter = make_exporter("http://127.0.0.1:9")
    exporter.close(0.1)

    assert not exporter.admit(1, 5, 40)
    assert exporter.full_reason == "shutdown"


def test_what_a_store_says_late_of_one_post_is_no_answer_to_the_next(
    make_exporter, make_info, make_rows, ending
):
    received = []

    def answer(status, body):
        return f"HTTP/1.1 {status} Because\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def serve(listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as reader:
                while line := reader.readline():
                    length = 0
                    while line != b"\r\n":
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                        line = reader.readline()
                    frames = list(iter_frames(reader.read(length)))
                    received.append(len(frames))
                    if len(frames) > 1:
                        connection.sendall(answer(413, b'{"code": "too_large"}'))
                        time.sleep(0.05)
                        connection.sendall(answer(400, b'{"code": "bad_request"}'))
                    else:
                        results = result_body([FrameResult(status=status_of(frames[0].header))])
                        connection.sendall(answer(200, results))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        exporter = make_exporter(f"http://127.0.0.1:{listener.getsockname()[1]}", flush_age_s=30.0)
        send(exporter, make_info(), [make_rows(5)], ending)
        eventually(lambda: exporter.stats().records)
        exporter.close(1.0)
        listener.shutdown(socket.SHUT_RDWR)

    assert received == [2, 1, 1]
    assert exporter.stats().records == {"sealed": 1}


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X-Drip: y\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"H"),
    ],
    ids=["chunks", "body", "headers", "continue", "status line"],
)
def test_an_answer_that_drips_for_ever_is_given_up(
    store, make_exporter, make_info, make_rows, ending, head, drop
):
    def drip(handler, frames):
        with contextlib.suppress(OSError):
            handler.wfile.write(head)
            for _ in range(100):
                handler.wfile.write(drop)
                time.sleep(0.1)
        return True

    store.answers = [drip]
    exporter = make_exporter(store.url, flush_age_s=30.0, request_timeout_s=0.5)
    send(exporter, make_info(), [make_rows(5)], ending)
    began = time.monotonic()
    store.wait_seals(1)

    assert time.monotonic() - began < 5
    eventually(lambda: exporter.stats().records == {"sealed": 1})


def test_a_unix_socket_serves_as_well(tmp_path, make_exporter, make_info, make_rows, ending):
    path = str(tmp_path / "store.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    received = []

    def serve():
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as reader:
            length = 0
            while (line := reader.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            received.extend(iter_frames(reader.read(length)))
            body = result_body(FrameResult(status="staged") for _ in received)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head + body)

    thread = threading.Thread(target=serve)
    thread.start()
    exporter = make_exporter(f"unix://{path}", flush_age_s=30.0)
    send(exporter, make_info(), [make_rows(5)], ending)
    thread.join(10)
    listener.close()

    assert [type(frame.header) for frame in received] == [Chunk, Seal]


def test_a_forked_child_starts_with_nothing(store, make_exporter, make_info, make_rows, ending):
    exporter = make_exporter(store.url, flush_age_s=30.0)
    begin(exporter, make_info(0), make_rows(5))
    child = os.fork()
    if child == 0:
        captured = exporter.stats().captured.rows
        send(exporter, make_info(1), [make_rows(5)], ending)
        exporter.close(5.0)
        sealed = exporter.stats().records.get("sealed")
        os._exit(0 if (captured, sealed) == (0, 1) else 1)
    eventually(lambda: (status := os.waitpid(child, os.WNOHANG)) != (0, 0) and status, 10)
    exporter.seal(make_info(0), ending)
    store.wait_seals(2)

    assert sorted(s.manifest.request_id for s in store.headers_of(Seal)) == ["cmpl-0", "cmpl-1"]


def status_of(header):
    return "sealed" if isinstance(header, Seal) else "staged"


def request_of(header):
    return header.manifest.request_id if isinstance(header, Seal) else ""
