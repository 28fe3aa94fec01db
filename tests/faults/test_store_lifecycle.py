"""C: the store is killed behind a commit, told to stop, frozen, starved; or comes first."""

import contextlib
import resource
import signal
import socket
import threading
import time

import httpx
import pytest
from support.engines import Engine
from support.frames import make_upload
from support.load import Load
from support.rig import rig
from support.route_store import results
from support.store_processes import Sidecar, until
from support.toxic_proxy import ToxicProxy, Toxics


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
            seconds = time.monotonic() - told
            found.sidecar.start()
            load.wait_for(5)
        verdict.recovery_s = load.first_success_after(told) - seconds
        verdict.note = f"ended after {seconds:.1f} s with status {code}"
        assert seconds < 8
        assert code == 0
        assert found.get("/v1/requests/half-0/routes").status_code == 404
        load.judge(verdict)


@pytest.mark.fault("C4", "the store freezes for 6 s", injected="SIGSTOP", short=True)
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


def _rss(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096
