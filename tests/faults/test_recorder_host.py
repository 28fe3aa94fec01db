"""A10 to A18: the disk, the process and its threads fail under the recorder."""

import os
import signal
import subprocess
import time
from collections import deque

import numpy as np
import pytest
from faults import needs
from faults.driving import EngineLoop, judge, look_up, rejoined
from faults.engine_loop import MODEL
from support.store_processes import until
from support.toxic_proxy import Toxics

from routereplay.patches.vllm.exporter import Exporter
from routereplay.patches.vllm.identity import ClientId
from routereplay.patches.vllm.record import Ending, RecordInfo
from routereplay.patches.vllm.settings import Settings

AWAY = Toxics(refuse=True)


def spool_files(root):
    return sorted(root.glob("*-*/*.rrs"))


def away(proxy):
    proxy.toxics = AWAY
    proxy.drop_connections()


def back(proxy):
    proxy.toxics = Toxics()


@pytest.fixture
def small_disk(request, tmp_path):
    """A file system of 4 MB, or of the parameter's size, that can be made read-only."""
    needs.root()
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*arguments):
        done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount: {done.stderr.strip()}")

    mount("-t", "tmpfs", "-o", f"size={getattr(request, 'param', '4m')}", "tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


# More than the memory holds, or what waits in memory may not fit an empty disk.
@pytest.mark.parametrize("small_disk", ["8m"], indirect=True)
@pytest.mark.fault("A10", "the spool's disk is full", injected="tmpfs of 8 MB")
def test_a10_a_full_disk_is_counted_and_used_again(verdict, store, proxy, small_disk, tmp_path):
    settings = {"spool_dir": small_disk / "spool", "queue_bytes": 4 << 20}
    with EngineLoop(tmp_path / "a10", proxy.url, **settings) as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        away(proxy)
        report = loop.until(lambda r: r["dropped"].get("spool_full", {"rows": 0})["rows"] > 1000)
        assert report["spooled"]["nbytes"] > 1 << 20
        verdict.recovery_s = rejoined(loop, lambda: back(proxy))
        loop.until(lambda r: r["spooled"]["rows"] == 0)
        away(proxy)
        loop.until(lambda r: r["spooled"]["rows"] > 0)
        back(proxy)
        loop.drain()
        found = judge(verdict, store.sidecar.url, loop, dropped=True)
    # What comes while a write is under way finds the memory full.
    reasons = {message.rpartition(" ")[2] for message in found.dropped.values()}
    assert {"spool_full"} <= reasons <= {"spool_full", "queue_full"}, found.dropped
    verdict.note = f"{len(found.dropped)} records dropped as spool_full; spooled again after it"


@pytest.mark.parametrize("small_disk", ["64m"], indirect=True)
@pytest.mark.fault("A11", "the spool becomes read-only", injected="mount -o remount,ro")
def test_a11_a_read_only_disk_leaves_the_memory(verdict, store, proxy, small_disk, tmp_path):
    with EngineLoop(tmp_path / "a11", proxy.url, spool_dir=small_disk / "spool") as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        away(proxy)
        loop.until(lambda r: r["spooled"]["rows"] > 0)
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        report = loop.until(lambda r: r["events"].get("spool_error") and r["queued"]["rows"] > 500)
        assert "internal_error" not in report["events"]
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        verdict.recovery_s = rejoined(loop, lambda: back(proxy))
        report = loop.drain()
        judge(verdict, store.sidecar.url, loop)
    assert report["dropped"] == {}
    assert "cannot be spooled" in loop.log()


@pytest.mark.fault("A11", "writes to the spool fail", injected="strace: rename gives EIO")
def test_a11_an_input_output_error_leaves_the_memory(verdict, store, proxy, tmp_path):
    needs.program("strace")
    with EngineLoop(tmp_path / "a11io", proxy.url, spool_dir=tmp_path / "spool") as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        away(proxy)
        inject = ["-e", "trace=rename", "-e", "inject=rename:error=EIO"]
        strace = subprocess.Popen(
            ["strace", "-f", "-qq", *inject, "-o", os.devnull, "-p", str(loop.process.pid)]
        )
        try:
            report = loop.until(lambda r: r["events"].get("spool_error") and r["queued"]["rows"])
        finally:
            strace.terminate()
            strace.wait()
        assert "internal_error" not in report["events"]
        loop.until(lambda r: r["spooled"]["rows"] > 0)
        verdict.recovery_s = rejoined(loop, lambda: back(proxy))
        report = loop.drain()
        judge(verdict, store.sidecar.url, loop)
    assert report["dropped"] == {}
    verdict.note = f"{report['events']['spool_error']} failed writes, then spooled again"


@pytest.mark.fault("A12", "the process is killed while it spools", injected="SIGKILL", short=True)
def test_a12_a_killed_processs_spool_is_adopted(verdict, store, proxy, tmp_path):
    spool = tmp_path / "spool"
    with EngineLoop(tmp_path / "a12", proxy.url, spool_dir=spool) as dead:
        dead.until(lambda r: r["acked"]["rows"] > 0)
        away(proxy)
        dead.until(lambda r: r["spooled"]["rows"] > 2000)
        (next(spool.glob("*-*")) / "0000009999.5.5.tmp").write_bytes(b"half a file")
        dead.signal(signal.SIGKILL)
    on_disk = len(spool_files(spool))
    back(proxy)
    began = time.monotonic()
    with EngineLoop(tmp_path / "heir", proxy.url, spool_dir=spool, rate=2) as heir:
        heir.until(lambda r: r["events"].get("spool_adopted") and not r["spooled"]["rows"])
        verdict.recovery_s = time.monotonic() - began
        report = heir.drain()
        judge(verdict, store.sidecar.url, heir)
    verdict.compare(dead.paired_steps())
    acked = set(dead.names("acked"))
    found = look_up(store.sidecar.url, dead.names("ended"))
    verdict.acked += len(acked)
    verdict.lost, verdict.wrong = len(acked - found.right), len(found.wrong)
    lost = found.absent | set(found.dropped)
    # What was in memory at the kill: what ends in about two seconds.
    assert len(lost) < 0.5 * len(found.right), (len(lost), len(found.right))
    assert not spool_files(spool)
    verdict.note = (
        f"{on_disk} files adopted, {report['events']['spool_adopted']} rows; "
        f"{len(lost)} records were only in memory"
    )


@pytest.mark.fault(
    "A13", "files of the spool are damaged", injected="bit, cut, empty, foreign, link"
)
def test_a13_damaged_files_are_put_aside(verdict, store, proxy, tmp_path):
    spool = tmp_path / "spool"
    away(proxy)
    with EngineLoop(tmp_path / "a13", proxy.url, spool_dir=spool) as dead:
        until(lambda: len(spool_files(spool)) >= 8, 60)
        dead.end()
    whole = spool_files(spool)
    bit, cut, empty, foreign, link = whole[1:6]
    content = bytearray(bit.read_bytes())
    content[len(content) // 2] ^= 1
    bit.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1000])
    empty.write_bytes(b"")
    foreign.rename(foreign.with_name("notes.txt"))
    link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    back(proxy)
    with EngineLoop(tmp_path / "heir", proxy.url, spool_dir=spool, rate=2) as heir:
        report = heir.until(
            lambda r: r["events"].get("spool_quarantined", 0) >= 5 and not spool_files(spool)
        )
        heir.drain()
        judge(verdict, store.sidecar.url, heir)
    found = look_up(store.sidecar.url, dead.names("ended"))
    verdict.wrong += len(found.wrong)
    assert found.right
    assert (tmp_path / "elsewhere").exists()
    assert len(list((spool / "bad").iterdir())) == 5
    verdict.note = (
        f"5 of {len(whole)} files put aside, {len(found.right)} records of the others arrived, "
        f"{report['dropped'].get('spool_damaged', {'rows': 0})['rows']} rows counted as damaged"
    )


@pytest.mark.fault("A14", "the process forks", injected="os.fork", short=True)
def test_a14_a_child_has_nothing_of_its_parent(verdict, store, proxy, tmp_path):
    child = """
if (pid := os.fork()) == 0:
    import time, threading
    stats = loop.exporter.stats()
    fresh = stats.captured.rows == stats.spooled.rows == 0
    loop.prefix, loop.made, loop.live, loop.states = 'a14child', 0, type(loop.live)(), {}
    loop.rate, loop.due = 0.0, 5.0
    for _ in range(20):
        loop.step()
    loop.exporter.close(10)
    left = loop.exporter.stats()
    os._exit(0 if fresh and left.balance.rows == 0 and left.records == {'sealed': 5} else 1)
loop.child = os.waitpid(pid, 0)[1]
(loop.folder / 'child').write_text(str(loop.child))
"""
    with EngineLoop(tmp_path / "a14", proxy.url, spool_dir=tmp_path / "spool") as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        loop.tell("python exec(" + repr(child) + ", globals() | {'loop': loop, 'os': os})")
        until((tmp_path / "a14" / "child").exists, 60)
        assert (tmp_path / "a14" / "child").read_text() == "0"
        report = loop.drain()
        judge(verdict, store.sidecar.url, loop)
    assert report["dropped"] == {}
    assert sum("a14child" in name for name in loop.names("acked")) == 5


@pytest.mark.fault("A15", "the exporter's thread dies", injected="SystemExit in it", short=True)
def test_a15_a_dead_thread_goes_on(verdict, store, proxy, tmp_path):
    kill = (
        "import ctypes; ctypes.pythonapi.PyThreadState_SetAsyncExc("
        "ctypes.c_ulong(loop.exporter._thread.ident), ctypes.py_object(SystemExit))"
    )
    with EngineLoop(tmp_path / "a15", proxy.url) as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        loop.tell("python " + kill)
        began = time.monotonic()
        loop.until(lambda r: r["events"].get("restarted"))
        verdict.recovery_s = rejoined(loop, lambda: None)
        assert time.monotonic() - began < 10
        report = loop.drain()
        judge(verdict, store.sidecar.url, loop)
    assert report["events"]["restarted"] == 1
    assert report["dropped"] == {}


@pytest.mark.fault("A16", "SIGTERM while the store is away", injected="SIGTERM", short=True)
def test_a16_what_waits_at_the_end_is_on_disk_in_time(verdict, store, proxy, tmp_path):
    spool = tmp_path / "spool"
    with EngineLoop(tmp_path / "a16", proxy.url, spool_dir=spool, flush_timeout_s=3) as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        # It hangs, and the POST under way with it.
        proxy.toxics = Toxics(hang=True)
        loop.until(lambda r: r["in_flight"]["rows"] and r["queued"]["rows"] > 500)
        seconds = loop.signal(signal.SIGTERM)
    report = loop.last_report()
    assert seconds < 3 + 1.5
    assert report["spooled"]["rows"] > 0
    assert set(report["dropped"]) <= {"shutdown"}
    back(proxy)
    proxy.drop_connections()
    began = time.monotonic()
    with EngineLoop(tmp_path / "heir", proxy.url, spool_dir=spool, rate=2) as heir:
        heir.until(lambda r: r["events"].get("spool_adopted") and not r["spooled"]["rows"])
        verdict.recovery_s = time.monotonic() - began
        heir.drain()
        judge(verdict, store.sidecar.url, heir, loop)
    verdict.note = f"ended in {seconds:.1f} s, {report['spooled']['rows']} rows on disk"


@pytest.mark.fault("A17", "the interpreter ends by itself", injected="the end of main, os._exit")
def test_a17_an_ordinary_end_is_bounded_and_a_hard_one_costs_the_queue(
    verdict, store, proxy, tmp_path
):
    with EngineLoop(tmp_path / "a17", proxy.url, flush_timeout_s=2) as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        away(proxy)
        loop.until(lambda r: r["store_away"])
        seconds = loop.end()
    report = loop.last_report()
    assert seconds < 2 + 1.5
    assert set(report["dropped"]) == {"shutdown"}
    back(proxy)
    with EngineLoop(tmp_path / "a17hard", proxy.url) as hard:
        hard.until(lambda r: r["acked"]["rows"] > 2000)
        hard.tell("python os._exit(0)")
        hard.process.wait(10)
    for one in (loop, hard):
        verdict.compare(one.paired_steps())
    acked = set(loop.names("acked")) | set(hard.names("acked"))
    found = look_up(store.sidecar.url, sorted(acked | set(hard.names("ended"))))
    verdict.acked, verdict.lost = len(acked), len(acked - found.right)
    verdict.wrong = len(found.wrong)
    lost = set(hard.names("ended")) - found.right
    verdict.note = f"main ended in {seconds:.1f} s; os._exit cost {len(lost)} records"
    # A second of flush age and what a POST holds.
    assert len(lost) < 200


@pytest.mark.fault("A18", "an array changes after it was handed on", injected="a write to it")
def test_a18_a_changed_array_is_found_by_its_digest(verdict, store, proxy, tmp_path):
    proxy.toxics = Toxics(refuse=True)
    exporter = Exporter(Settings(proxy.url, flush_age_s=0.05, retry_ceiling_s=0.1))
    rows = np.arange(3 * 64 * 8, dtype="u1").reshape(3, 64, 8) % MODEL.num_experts
    records = {}
    for name in ("a18-kept", "a18-changed"):
        info = RecordInfo(
            *(name, ClientId(name, 0, ()), None, MODEL, "stand-in", [1, 2, 3], 0),
            *("engine", 0, time.time()),
        )
        exporter.open(info, source := deque())
        records[name] = rows.copy()
        assert exporter.admit(1, 3, rows.nbytes)
        source.append(records[name])
        exporter.seal(info, Ending([4], "stop", ()))
    until(lambda: exporter.stats().in_flight.rows == 6, 20)
    # Its digest is taken; its bytes are not sent yet.
    records["a18-changed"][1] = 7
    proxy.toxics = Toxics()
    until(lambda: sum(exporter.stats().records.values()) == 2, 60)
    exporter.close()
    kept = store.http.get("/v1/requests/a18-kept/routes", params={"format": "json"})
    assert kept.status_code == 200
    changed = store.http.get("/v1/requests/a18-changed/routes")
    assert (changed.status_code, changed.json()["code"]) == (404, "dropped")
    verdict.acked = 1
    verdict.load = "two records"
    verdict.note = "the store refuses it, and the trainer reads `rejected:malformed_frame`"
