"""E: broken, hostile and too many requests; others go on, nothing is stored that is not right."""

import contextlib
import pickle
import resource
import socket
import struct
import time
import zlib

import httpx
import msgpack
import numpy as np
import pytest
from support.frames import make_upload
from support.load import Load
from support.oracle import Oracle
from support.route_store import results, running_store
from support.store_processes import until

from routereplay.wire import MEDIA_TYPE

HEAD = b"POST /v1/ingest HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    limits = {"head_timeout_s": 2, "stall_timeout_s": 2, "max_connections": 400}
    limits["max_trajectory_requests"] = 1000
    folder = tmp_path_factory.mktemp("store")
    with running_store("embedded", folder, durability="memory", **limits) as running:
        yield running


@pytest.fixture
def kept(store, verdict):
    """What was stored before the attack is there, and right, after it."""
    oracle = Oracle()
    for number in range(5):
        assert oracle.put(store.http, make_upload(f"kept-{verdict.row}-{number}", seed=number))
    before = store.contents()
    yield oracle
    after = store.contents()
    # `:n` counts what has arrived, taken or not.
    changed = {name for name, value in before.items() if after.get(name) != value}
    changed = {name for name in changed if not name.endswith(b":n")}
    assert changed == set()
    verdict.acked = len(oracle.acked)
    verdict.lost, verdict.wrong = oracle.lost(store.http), oracle.wrong(store.http)


def connect(store):
    return socket.create_connection(("127.0.0.1", store.sidecar.port), timeout=10)


def exchange(store, *pieces):
    """Everything that comes back until the server closes, or a second is over."""
    with connect(store) as raw:
        raw.settimeout(3)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            for piece in pieces:
                raw.sendall(piece)
            while piece := raw.recv(65536):
                answer += piece
    return answer


def slowest_livez(store, seconds):
    """The slowest of a few probes within `seconds`, as another client sees it."""
    slowest, until_then = 0.0, time.monotonic() + seconds
    with httpx.Client(base_url=store.sidecar.url, timeout=10) as http:
        while time.monotonic() < until_then:
            began = time.monotonic()
            assert http.get("/livez").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
    return slowest


@pytest.mark.fault("E1", "lengths that contradict each other", injected="raw sockets", short=True)
def test_e01_a_request_that_means_two_things_is_none(store, kept, verdict):
    for lengths in (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: -1\r\n",
    ):
        follower = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = exchange(store, HEAD + lengths + b"\r\n0\r\n\r\n" + follower)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"alive" not in answer
    chunked = exchange(store, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n")
    assert chunked.startswith(b"HTTP/1.1 411 ")
    assert exchange(store, HEAD + b"\r\n").startswith(b"HTTP/1.1 411 ")


@pytest.mark.fault("E2", "200 clients that stall", injected="raw sockets")
def test_e02_two_hundred_slow_clients_do_not_stop_others(store, kept, verdict):
    starts = [
        b"",
        b"POST /v1/ing",
        HEAD + b"X-Half: ",
        HEAD + b"Content-Length: 1000000\r\n\r\nRRF\n",
    ]
    with contextlib.ExitStack() as stack, Load(store.sidecar.url) as load:
        alone = slowest_livez(store, 2)
        sockets = []
        for number in range(200):
            raw = stack.enter_context(connect(store))
            raw.sendall(starts[number % len(starts)])
            sockets.append(raw)
        among = slowest_livez(store, 2)
        load.wait_for(20)
        ended = 0
        for raw in sockets:
            raw.settimeout(10)
            with contextlib.suppress(ConnectionError):
                while raw.recv(65536):
                    pass
            ended += 1
    assert ended == 200
    assert {answer.status for answer in load.answers} == {200}
    verdict.note = f"slowest probe {alone * 1000:.0f} ms without, {among * 1000:.0f} ms with them"
    load.judge(verdict)


@pytest.mark.fault("E3", "10,000 idle connections", injected="raw sockets")
def test_e03_idle_connections_end_and_others_get_in(store, kept, verdict):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10_000
    if hard not in (resource.RLIM_INFINITY,) and hard < wanted + 500:
        pytest.skip(f"needs {wanted + 500} file descriptors, may have {hard}: ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 500), hard))
    refused = 0
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(wanted):
                try:
                    stack.enter_context(connect(store))
                except OSError:
                    refused += 1
            began = time.monotonic()

            def serves():
                with contextlib.suppress(httpx.TransportError):
                    return httpx.get(f"{store.sidecar.url}/livez").status_code == 200
                return False

            until(serves, 10)
            verdict.recovery_s = time.monotonic() - began
            assert verdict.recovery_s < 6
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert refused < wanted // 100
    verdict.note = "400 are taken, each for 2 s; the rest is told 503"


@pytest.mark.fault("E4", "64 MiB announced, one byte sent", injected="raw socket", short=True)
def test_e04_an_announced_body_that_does_not_come_holds_nothing(store, kept, verdict):
    length = 64 * 1024 * 1024
    with connect(store) as raw:
        raw.sendall(HEAD + b"Content-Length: %d\r\n\r\nR" % length)
        until(lambda: "ingest_inflight_bytes 6.7" in store.get("/metrics").text)
        assert raw.recv(65536).startswith(b"HTTP/1.1 408 ")
    until(lambda: "ingest_inflight_bytes 0.0" in store.get("/metrics").text)


@pytest.mark.fault("E5", "a compressed bomb", injected="Content-Encoding", short=True)
def test_e05_nothing_is_unpacked(store, kept, verdict):
    bomb = zlib.compress(bytes(50 * 1024 * 1024), 9)
    for coding in ("gzip", "deflate", "zstd"):
        headers = {"Content-Encoding": coding, "Content-Type": MEDIA_TYPE}
        answer = store.http.post("/v1/ingest", content=bomb, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_frame")


def framed(header, payload=b""):
    prefix = struct.pack("<4sB3xIIQ8x", b"RRF\n", 1, len(header), zlib.crc32(header), len(payload))
    head = prefix + header
    return head + bytes(-len(head) % 64) + payload + bytes(-len(payload) % 64)


def packed_header(upload, **changes):
    header = msgpack.unpackb(upload.chunk_frame(0)[32:][: header_length(upload)])
    return msgpack.packb({**header, **changes})


def header_length(upload):
    return struct.unpack_from("<I", upload.chunk_frame(0), 8)[0]


@pytest.mark.fault("E6", "MessagePack bombs", injected="crafted headers", short=True)
def test_e06_a_header_that_explodes_is_refused_at_once(store, kept, verdict):
    nested = b"\x91" * 100_000
    bombs = {
        "array of 4 G": b"\xdd\xff\xff\xff\xff",
        "map of 4 G": b"\xdf\xff\xff\xff\xff",
        "string of 4 G": b"\xdb\xff\xff\xff\xff",
        "nested": nested,
        "empty maps": b"\xdd" + struct.pack(">I", 200_000) + b"\x80" * 200_000,
        "ext": b"\xc7\x10\x05" + bytes(16),
        "twice": b"\x82\xa4kind\xa5chunk\xa4kind\xa4seal",
        "nothing": b"",
    }
    slowest = 0.0
    for bomb in bombs.values():
        began = time.monotonic()
        answer = store.post(framed(bomb))
        slowest = max(slowest, time.monotonic() - began)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_frame")
    verdict.note = f"the slowest of {len(bombs)} took {slowest * 1000:.0f} ms"


@pytest.mark.fault("E7", "pickles and .npy files", injected="crafted bodies", short=True)
def test_e07_a_foreign_file_is_no_frame(store, kept, verdict, tmp_path):
    trap = tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return (open, (str(trap), "w"))

    np.save(tmp_path / "object.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.zeros((3, 4))))
    trap.unlink(missing_ok=True)
    bodies = [pickle.dumps(Trap()), (tmp_path / "object.npy").read_bytes()]
    bodies += [(tmp_path / "fortran.npy").read_bytes(), b"PK\x03\x04" + bytes(100)]
    for body in [*bodies, *(framed(body) for body in bodies)]:
        assert store.post(body).json()["code"] == "malformed_frame"
    assert not trap.exists()


@pytest.mark.fault("E8", "shapes whose product overflows", injected="crafted headers", short=True)
def test_e08_a_shape_is_checked_before_it_is_believed(store, kept, verdict):
    upload = make_upload("huge")
    for changes in (
        {"rows": 2**62},
        {"rows": 2**63},
        {"num_layers": 2**40, "topk": 2**40},
        {"rows": -1},
        {"topk": 0},
        {"first_row": 2**62},
        {"seq": 2**31},
    ):
        answer = store.post(
            framed(packed_header(upload, **changes), upload.chunk_rows(0).tobytes())
        )
        assert answer.status_code == 400, changes
    assert store.get("/v1/requests/huge/routes").status_code == 404


@pytest.mark.fault("E9", "experts that the model does not have", injected="payload", short=True)
def test_e09_an_expert_out_of_range_is_refused(store, kept, verdict):
    upload = make_upload("out-of-range", num_experts=60)
    upload.experts[3, 1, 0] = 60
    again = make_upload("out-of-range", num_experts=60)
    good = upload.changed(chunks=again.manifest.chunks)
    answer = store.post(good.chunk_frame(0))
    assert answer.json()["results"][0]["code"] in ("malformed_frame", "invalid_routes")
    from routereplay.wire import digest

    frame = upload.chunk_frame(0, digest=digest(upload.chunk_rows(0).data))
    answer = store.post(frame)
    assert (answer.status_code, results(answer)) == (422, ["invalid_routes"])


NAMES = ["../../etc", "a%2Fb", "a\0b", "a\r\nX-Evil: 1", "{t:kept}", "ü💥", "x" * 10_000, "", "*"]


@pytest.mark.fault("E10", "ids that are paths, keys, headers or commands", injected="crafted ids")
def test_e10_an_id_is_a_name_and_nothing_else(store, kept, verdict):
    evil = [*NAMES, "*3\r\n$3\r\nDEL", "[a-z]", "$(id)", "' OR 1=1", "<img src=x onerror=alert(1)>"]
    for name in evil:
        upload = make_upload("named")
        chunk = store.post(framed(packed_header(upload, request_id=name), b""))
        assert chunk.status_code in (400, 413), name
        quoted = "".join(f"%{byte:02X}" for byte in name.encode()) or "%20"
        answer = store.http.get(f"/v1/requests/{quoted}/routes")
        assert answer.status_code in (404, 431), name
        assert "x-evil" not in answer.headers
    lines = store.sidecar.log().splitlines()
    assert all(line.startswith("{") for line in lines)


@pytest.mark.fault("E11", "40 KB of headers, 5000 lines", injected="raw sockets", short=True)
def test_e11_headers_have_an_end(store, kept, verdict):
    start = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
    for head in (
        start + b"X: " + b"y" * 40_000 + b"\r\n\r\n",
        start + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n",
        b"GET /livez?" + b"y" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        assert exchange(store, head).startswith(b"HTTP/1.1 431 ")


@pytest.mark.fault("E12", "one id, other content", injected="a second upload", short=True)
def test_e12_what_is_sealed_stays(store, kept, verdict):
    other = make_upload("kept-E12-0", seed=1000)
    answer = store.post(other.body)
    assert answer.status_code == 409
    assert results(answer)[-1] == "conflict"
    staged = [key for key in store.engine.keys("rr:*:u:*") if b"kept-E12-0-1000" in key]
    assert all(0 < store.engine.ttl(key) <= 3600 for key in staged)
    for key in store.engine.keys("rr:*kept-E12-0*"):
        assert store.engine.ttl(key) > 0
    # What the loser staged goes by itself, within its staging time.
    for key in store.engine.keys("rr:*:?:0_kept-E12-0-1000*"):
        store.engine.delete(key)


@pytest.mark.fault("E13", "a trajectory of requests without end", injected="1200 tiny requests")
def test_e13_a_trajectory_has_a_limit(store, kept, verdict):
    codes = {}
    upload = make_upload("tiny-0", trajectory_id="endless", prompt_len=2, completion_len=2)
    body = []
    for number in range(1200):
        header = packed_header(upload, request_id=f"tiny-{number}", upload_id=f"0_tiny-{number}")
        body.append(framed(header, upload.chunk_rows(0).tobytes()))
        if len(body) == 200:
            for code in results(store.post(b"".join(body))):
                codes[code] = codes.get(code, 0) + 1
            body = []
    verdict.note = str(codes)
    assert codes == {"staged": 1000, "limit_reached": 200}
    assert store.put(make_upload("other-trajectory", trajectory_id="fine"))


@pytest.mark.fault("E14", "markup in ids, shown on the page", injected="crafted ids", short=True)
def test_e14_an_id_is_never_markup(store, kept, verdict):
    name = "<img src=x onerror=alert(1)>"
    quoted = "".join(f"%{byte:02X}" for byte in name.encode())
    for path in (f"/v1/requests/{quoted}", f"/{quoted}", "/"):
        answer = store.http.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        if answer.headers["content-type"].startswith("text/html"):
            assert name not in answer.text
            assert "unsafe-eval" not in answer.headers["content-security-policy"]
            assert "default-src" in answer.headers["content-security-policy"]
        else:
            assert "json" in answer.headers["content-type"]
