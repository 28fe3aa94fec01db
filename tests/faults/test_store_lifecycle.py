"""C: the store is killed behind a commit, told to stop, frozen, starved; or comes first."""

import contextlib
import os
import resource
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from faults import needs
from faults.driving import EngineLoop, judge, rejoined
from support.engines import Engine
from support.frames import make_upload
from support.load import Load
from support.rig import rig
from support.route_store import results
from support.store_processes import Sidecar, until
from support.toxic_proxy import ToxicProxy, Toxics

from routereplay.client import RouteStoreClient
from routereplay.wire.errors import TransportError


@pytest.mark.fault("C2", "killed between the commit and its answer", injected="proxy, SIGKILL")
def test_c02_an_answer_that_was_lost_is_a_replay(verdict, tmp_path):
    upload = make_upload("answered-never")
    with rig(tmp_path) as found, ToxicProxy(found.sidecar.port) as proxy:
        proxy.toxics = Toxics(swallow_responses=True)
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{proxy.url}/v1/ingest", content=upload.body)
        until(lambda: found.get("/v1/requests/answered-never").status_code == 200)
        found.sidecar.signal(signal.SIGKILL)
        found.sidecar.wait()
        began = time.monotonic()
        found.sidecar.start()
        again = found.post(upload.body)
        verdict.recovery_s = time.monotonic() - began
        assert (again.status_code, set(results(again))) == (200, {"replayed"})
        assert len(found.get("/v1/requests/answered-never").json()["choices"]) == 1
        verdict.acked = 1
        verdict.lost = int(found.get("/v1/requests/answered-never/routes").status_code != 200)


@pytest.mark.fault("C3", "told to stop during 100 uploads", injected="SIGTERM")
def test_c03_a_stopping_store_ends_in_time_and_loses_nothing(verdict, tmp_path):
    with rig(tmp_path, graceful_shutdown_s=4) as found, contextlib.ExitStack() as stack:
        spool = tmp_path / "spool"
        loop = stack.enter_context(EngineLoop(tmp_path / "c3", found.url, spool_dir=spool))
        for number in range(100):
            body = make_upload(f"half-{number}", seed=number).body
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", found.sidecar.port)))
            head = f"POST /v1/ingest HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            raw.sendall(head.encode() + body[: len(body) // 2])
        with Load(found.url) as load:
            load.wait_for(10)
            told = time.monotonic()
            found.sidecar.signal(signal.SIGTERM)
            code = found.sidecar.wait(20)
            ended = time.monotonic()
            found.sidecar.start()
            load.wait_for(5)
        verdict.recovery_s = load.first_success_after(ended)
        verdict.note = f"ended after {ended - told:.1f} s with status {code}"
        assert ended - told < 8
        assert code == 0
        assert found.get("/v1/requests/half-0/routes").status_code == 404
        assert loop.drain()["dropped"] == {}
        judge(verdict, found.url, loop)
        load.judge(verdict)


WEDGED = """
import time
from routereplay.sidecar import server
from routereplay.sidecar.runtime import Runtime

async def hang(self):
    time.sleep(1000)

Runtime.close, server._LAST_RESORT_S = hang, 2
server.serve(server.Settings())
"""


@pytest.mark.fault("C5", "a stop that hangs", injected="the event loop blocks", short=True)
def test_c05_a_stop_that_hangs_ends_and_says_where(verdict, tmp_path):
    sidecar = Sidecar(tmp_path, graceful_shutdown_s=1, program=["-c", WEDGED])
    try:
        sidecar.start()
        body = make_upload("before").body
        assert httpx.post(f"{sidecar.url}/v1/ingest", content=body).status_code == 200
        told = time.monotonic()
        sidecar.signal(signal.SIGTERM)
        code = sidecar.wait(20)
        seconds = time.monotonic() - told
    finally:
        sidecar.stop()
    again = Sidecar(tmp_path)
    try:
        again.start()
        until(again.is_ready, 20)
        verdict.acked = 1
        verdict.lost = int(httpx.get(f"{again.url}/v1/requests/before/routes").status_code != 200)
    finally:
        again.stop()
    assert code == 1
    assert 2.5 < seconds < 8
    assert "in hang" in sidecar.log()
    verdict.note = f"ended by itself after {seconds:.1f} s, with the stack of every thread"


@pytest.mark.fault("C4", "the store freezes for 20 s", injected="SIGSTOP")
def test_c04_a_store_that_froze_for_long_is_asked_again(verdict, tmp_path):
    spool = tmp_path / "spool"
    settings = {"spool_dir": spool, "request_timeout_s": 3}
    with rig(tmp_path) as found, EngineLoop(tmp_path / "c4", found.url, **settings) as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        found.sidecar.signal(signal.SIGSTOP)
        frozen = time.monotonic()
        with (
            RouteStoreClient(found.url, timeout_s=2, attempts=2) as client,
            pytest.raises(TransportError),
        ):
            client.fetch_request("any")
        waited = time.monotonic() - frozen
        loop.until(lambda r: r["store_away"] and r["spooled"]["rows"] > 2000)
        time.sleep(max(20 - (time.monotonic() - frozen), 0))
        verdict.recovery_s = rejoined(loop, lambda: found.sidecar.signal(signal.SIGCONT))
        assert loop.drain()["dropped"] == {}
        judge(verdict, found.url, loop)
    verdict.note = f"a reader with two attempts of 2 s gave up after {waited:.1f} s"
    assert waited < 8


@pytest.mark.fault("C4", "the store freezes for 6 s in a body", injected="SIGSTOP", short=True)
def test_c04_a_frozen_store_goes_on_where_it_was(verdict, tmp_path):
    with rig(tmp_path, stall_timeout_s=3) as found:
        upload = make_upload("interrupted")
        body = upload.body
        raw = socket.create_connection(("127.0.0.1", found.sidecar.port), timeout=10)
        with raw, Load(found.url) as load:
            head = f"POST /v1/ingest HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            raw.sendall(head.encode() + body[:100])
            load.wait_for(10)
            found.sidecar.signal(signal.SIGSTOP)
            time.sleep(0.5)
            # It comes in time, and cannot be read in time.
            raw.sendall(body[100:])
            time.sleep(5.5)
            found.sidecar.signal(signal.SIGCONT)
            thawed = time.monotonic()
            load.wait_for(10)
            assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")
        verdict.recovery_s = load.first_success_after(thawed)
        load.judge(verdict)


@pytest.mark.fault("C6", "more bodies than memory", injected="60 bodies of 4 MB, room for 16 MB")
def test_c06_bodies_are_refused_before_they_fill_the_memory(verdict, tmp_path):
    room = 16 * 1024 * 1024
    with rig(tmp_path, max_inflight_bytes=room) as found:
        uploads = [
            make_upload(
                f"big-{n}", seed=n, prompt_len=70_000, num_layers=60, topk=1, chunk_rows=20_000
            )
            for n in range(4)
        ]
        bodies = [upload.body for upload in uploads]
        statuses = []

        def post(number):
            with httpx.Client(base_url=found.url, timeout=60) as http:
                for turn in range(4):
                    answer = http.post("/v1/ingest", content=bodies[(number + turn) % 4])
                    statuses.append(answer.status_code)

        with Load(found.url, threads=1) as load:
            load.wait_for(3)
            base = _rss(found.sidecar.pid)
            threads = [threading.Thread(target=post, args=(n,)) for n in range(15)]
            for thread in threads:
                thread.start()
            highest = base
            while any(thread.is_alive() for thread in threads):
                highest = max(highest, _rss(found.sidecar.pid))
                time.sleep(0.05)
            load.wait_for(3)
        verdict.note = (
            f"{statuses.count(200)} taken, {statuses.count(503)} refused; "
            f"{(highest - base) / 2**20:.0f} MiB more at most"
        )
        assert set(statuses) <= {200, 503}
        assert highest - base < 6 * room
        load.judge(verdict)


@pytest.mark.fault("C6", "killed for its memory", injected="a memory cgroup of 256 MB")
def test_c06_a_store_that_was_killed_for_its_memory_comes_back_whole(verdict, tmp_path):
    with memory_group(256) as join, rig(tmp_path, max_inflight_bytes=2**30) as found:
        with Load(found.url) as load:
            load.wait_for(10)
            join(found.sidecar.pid)
            length = 60 * 2**20
            head = f"POST /v1/ingest HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
            address = ("127.0.0.1", found.sidecar.port)
            with contextlib.ExitStack() as stack:
                bodies = [stack.enter_context(socket.create_connection(address)) for _ in range(8)]
                for raw in bodies:
                    with contextlib.suppress(ConnectionError):
                        raw.sendall(head.encode() + bytes(length - 1))
                code = found.sidecar.wait(30)
            began = time.monotonic()
            found.sidecar.start()
            load.wait_for(5)
        verdict.recovery_s = load.first_success_after(began)
        verdict.note = f"ended with {code}; bodies of 480 MB were let in on purpose"
        assert code == -signal.SIGKILL
        load.judge(verdict)


@pytest.mark.fault("C7", "no file descriptors are left", injected="RLIMIT_NOFILE", short=True)
def test_c07_a_store_without_descriptors_recovers(verdict, tmp_path):
    with rig(tmp_path) as found:
        with Load(found.url) as load:
            load.wait_for(10)
        pid = found.sidecar.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        with contextlib.ExitStack() as stack:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (40, before[1]))
            for _ in range(80):
                with contextlib.suppress(OSError):
                    address = ("127.0.0.1", found.sidecar.port)
                    stack.enter_context(socket.create_connection(address, timeout=2))
            time.sleep(1)
        began = time.monotonic()
        until(found.sidecar.is_ready, 20)
        verdict.recovery_s = time.monotonic() - began
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert found.post(make_upload("after").body).status_code == 200
        load.judge(verdict)


@pytest.mark.fault("C9", "the store starts before its engine", injected="order", short=True)
def test_c09_a_store_waits_for_its_engine(verdict, tmp_path):
    engine = Engine(tmp_path / "engine")
    sidecar = Sidecar(tmp_path, redis_url=engine.url)
    try:
        sidecar.start()
        for _ in range(5):
            assert httpx.get(f"{sidecar.url}/livez").status_code == 200
            assert httpx.get(f"{sidecar.url}/readyz").status_code == 503
        engine.start()
        began = time.monotonic()
        until(sidecar.is_ready, 10)
        verdict.recovery_s = time.monotonic() - began
        body = make_upload("first").body
        assert httpx.post(f"{sidecar.url}/v1/ingest", content=body).status_code == 200
        verdict.acked = 1
    finally:
        sidecar.stop()
        engine.kill()


@contextlib.contextmanager
def memory_group(megabytes):
    """`join(pid)`: a process may have so much memory from then on; cgroup v1 or v2."""
    needs.root()
    root = Path("/sys/fs/cgroup")
    v1 = root / "memory"
    group = (v1 if v1.is_dir() else root) / f"routereplay-{os.getpid()}"
    limit = group / ("memory.limit_in_bytes" if v1.is_dir() else "memory.max")
    try:
        group.mkdir()
        limit.write_text(str(megabytes * 2**20))
    except OSError as error:
        pytest.skip(f"cannot limit memory: {error}")

    def join(pid):
        (group / "cgroup.procs").write_text(str(pid))

    yield join
    until(lambda: not (group / "cgroup.procs").read_text(), 10)
    group.rmdir()


def _rss(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096
