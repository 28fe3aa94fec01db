"""A1 to A9: the store is away, hangs, refuses or is slow, and the engine does not notice."""

import re
import time
from collections import deque
from itertools import pairwise

import pytest
from faults.driving import EngineLoop, compare_steps, judge, rejoined
from faults.engine_loop import MODEL, expected_rows
from support.route_store import running_store
from support.store_processes import until
from support.toxic_proxy import ToxicProxy, Toxics, http_answer

from routereplay.patches.vllm.exporter import Exporter
from routereplay.patches.vllm.identity import ClientId
from routereplay.patches.vllm.record import Ending, RecordInfo
from routereplay.patches.vllm.settings import Settings


@pytest.mark.fault("A1", "the store is never up", injected="closed port", short=True)
def test_a01_a_store_that_is_never_up_fills_the_spool(verdict, store, tmp_path):
    with ToxicProxy(store.sidecar.port) as probe:
        port = probe.port
    with EngineLoop(
        tmp_path / "a1", f"http://127.0.0.1:{port}", spool_dir=tmp_path / "spool"
    ) as loop:
        report = loop.until(lambda r: r["store_away"] and r["spooled"]["rows"] > 2000)
        assert report["dropped"] == {}
        assert report["queued"]["nbytes"] < 64 << 20
        warnings = loop.log().count("did not take routes")
        assert 1 <= warnings <= 2, loop.log()
        with ToxicProxy(store.sidecar.port, port=port):
            verdict.recovery_s = rejoined(loop, lambda: None)
            loop.drain()
            judge(verdict, store.sidecar.url, loop)
    verdict.note = f"{report['spooled']['nbytes'] >> 20} MiB were on disk, {warnings} warning"


@pytest.mark.fault("A1", "the store is away", injected="RST on connect, on and off")
def test_a01_the_engine_does_not_notice(verdict, store, proxy, set_toxics, tmp_path):
    with EngineLoop(tmp_path / "a1on", proxy.url, spool_dir=tmp_path / "spool") as loop:
        verdict.note = compare_steps(loop, set_toxics(refuse=True), set_toxics())
        verdict.recovery_s = rejoined(loop, set_toxics())
        loop.drain()
        judge(verdict, store.sidecar.url, loop)


@pytest.mark.fault("A2", "the store is a black hole", injected="nftables drops its SYNs")
def test_a02_a_black_hole_is_tried_seldom(verdict, store, proxy, blackhole, tmp_path):
    with EngineLoop(tmp_path / "a2", proxy.url, spool_dir=tmp_path / "spool") as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        errors = loop.report()["events"].get("store_error", 0)
        heal = blackhole(proxy.port)
        proxy.drop_connections()
        began = time.monotonic()
        report = loop.until(lambda r: r["store_away"])
        tries = report["events"]["store_error"] - errors
        # Each try waits 2 s for the connection.
        assert tries <= 2 + (time.monotonic() - began) / 1.0
        verdict.recovery_s = rejoined(loop, heal)
        loop.drain()
        judge(verdict, store.sidecar.url, loop)
        verdict.note = f"{tries} tries in {time.monotonic() - began:.0f} s"


@pytest.mark.fault("A3", "the store accepts and never reads", injected="a proxy that hangs")
def test_a03_a_store_that_never_reads_holds_nobody_up(verdict, store, proxy, set_toxics, tmp_path):
    settings = {"spool_dir": tmp_path / "spool", "request_timeout_s": 2, "queue_bytes": 64 << 20}
    with EngineLoop(tmp_path / "a3", proxy.url, **settings) as loop:
        verdict.note = compare_steps(loop, set_toxics(hang=True), set_toxics())
        set_toxics(hang=True)()
        report = loop.until(lambda r: r["store_away"] and r["spooled"]["rows"] > 2000)
        assert report["most_held"] <= 64 << 20
        verdict.recovery_s = rejoined(loop, set_toxics())
        loop.drain()
        judge(verdict, store.sidecar.url, loop)


@pytest.mark.fault("A4", "the store answers 500, then heals", injected="a proxy that answers")
def test_a04_errors_are_tried_again_and_eight_recorders_not_at_once(
    verdict, store, proxy, tmp_path
):
    tries = {}

    def fail(head):
        who = re.search(rb"Bearer (\w+)", head)
        tries.setdefault(who and who[1], []).append(time.monotonic())
        return http_answer(500)

    proxy.toxics = Toxics(answer=fail)
    with EngineLoop(tmp_path / "a4", proxy.url, spool_dir=tmp_path / "spool") as loop:
        others = [one_record(Settings(proxy.url, api_key=f"key{n}"), f"a4-{n}") for n in range(8)]
        loop.until(lambda r: r["events"].get("store_error", 0) >= 8)
        until(lambda: len(tries) == 9 and min(map(len, tries.values())) >= 6, 60)
        verdict.recovery_s = rejoined(loop, lambda: setattr(proxy, "toxics", Toxics()))
        loop.drain()
        for exporter in others:
            until(lambda exporter=exporter: exporter.stats().records == {"sealed": 1}, 60)
            exporter.close()
        judge(verdict, store.sidecar.url, loop)
    sixth = sorted(times[5] for who, times in tries.items() if who)
    assert sixth[-1] - sixth[0] > 0.3
    verdict.note = f"sixth try of eight recorders within {sixth[-1] - sixth[0]:.1f} s"


def one_record(settings, name):
    """A recorder's exporter with one sealed record."""
    client = ClientId(name, 0, ())
    info = RecordInfo(name, client, None, MODEL, "stand-in", [1, 2], 0, "engine", 0, time.time())
    exporter = Exporter(settings)
    rows = expected_rows("any")[:2]
    exporter.open(info, source := deque())
    assert exporter.admit(1, len(rows), rows.nbytes)
    source.append(rows)
    exporter.seal(info, Ending([3], "stop", ()))
    return exporter


@pytest.mark.fault("A5", "503 with Retry-After: 4", injected="a proxy that answers")
def test_a05_retry_after_is_kept(verdict, store, proxy, tmp_path):
    times = []

    def busy(head):
        times.append(time.monotonic())
        return http_answer(503, Retry_After=4) if len(times) < 3 else None

    proxy.toxics = Toxics(answer=busy)
    with EngineLoop(tmp_path / "a5", proxy.url) as loop:
        until(lambda: len(times) >= 3, 60)
        proxy.toxics = Toxics()
        loop.drain()
        judge(verdict, store.sidecar.url, loop)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert min(pauses[:2]) >= 4.0
    verdict.note = f"came back after {', '.join(f'{pause:.1f} s' for pause in pauses[:2])}"


@pytest.mark.fault(
    "A6", "the key was changed", injected="401 until the new key is sent", short=True
)
def test_a06_a_changed_key_loses_nothing(verdict, store, proxy, tmp_path):
    key = tmp_path / "key"
    key.write_text("old")

    def check_key(head):
        return None if b"Bearer new" in head else http_answer(401, b'{"code": "unauthorized"}')

    proxy.toxics = Toxics(answer=check_key)
    settings = {"spool_dir": tmp_path / "spool", "api_key_file": key}
    with EngineLoop(tmp_path / "a6", proxy.url, **settings) as loop:
        loop.until(lambda r: r["store_away"] and r["spooled"]["rows"] > 500)
        verdict.recovery_s = rejoined(loop, lambda: key.write_text("new"))
        report = loop.drain()
        judge(verdict, store.sidecar.url, loop)
    warnings = loop.log().count("does not take routes from here")
    assert (report["dropped"], warnings) == ({}, 1)
    verdict.note = "one warning a minute"


@pytest.mark.fault("A7", "bodies over the store's limit", injected="a store with a small limit")
def test_a07_what_is_refused_for_good_is_dropped_and_the_trainer_reads_why(verdict, tmp_path):
    limit = 512 * 1024
    with (
        running_store("embedded", tmp_path, max_body_bytes=limit) as small,
        EngineLoop(tmp_path / "a7", small.sidecar.url) as loop,
    ):
        loop.until(lambda r: r["records"].get("dropped:rejected:too_large", 0) >= 3)
        report = loop.drain()
        found = judge(verdict, small.sidecar.url, loop, dropped=True)
    assert report["records"]["sealed"] > 3 * report["records"]["dropped:rejected:too_large"]
    assert found.dropped
    assert {"rejected:too_large" in message for message in found.dropped.values()} == {True}, (
        found.dropped
    )
    verdict.note = f"{len(found.dropped)} long prompts dropped, their neighbours kept"


@pytest.mark.fault("A8", "answers are lost after the commit", injected="a proxy", short=True)
def test_a08_a_lost_answer_is_replayed(verdict, store, proxy, tmp_path):
    with EngineLoop(tmp_path / "a8", proxy.url) as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        proxy.toxics = Toxics(swallow_responses=True)
        loop.until(lambda r: r["events"].get("store_error", 0) >= 3)
        verdict.recovery_s = rejoined(loop, lambda: setattr(proxy, "toxics", Toxics()))
        report = loop.drain()
        judge(verdict, store.sidecar.url, loop)
    assert report["events"]["replayed"] > 0
    assert report["dropped"] == {}
    verdict.note = f"{report['events']['replayed']} frames were replays"


@pytest.mark.fault("A9", "the queue overflows, no spool", injected="a link of 100 kB/s")
def test_a09_what_does_not_fit_is_dropped_and_memory_is_bounded(verdict, store, proxy, tmp_path):
    cap = 8 << 20
    with EngineLoop(tmp_path / "a9", proxy.url, queue_bytes=cap) as loop:
        base = loop.until(lambda r: r["acked"]["rows"] > 2000)["rss"]
        proxy.toxics = Toxics(bytes_per_s=100_000)
        proxy.drop_connections()
        report = loop.until(lambda r: r["dropped"].get("queue_full", {"rows": 0})["rows"] > 10_000)
        assert report["most_held"] <= cap
        assert report["rss"] <= base + cap + (64 << 20)
        proxy.toxics = Toxics()
        proxy.drop_connections()
        verdict.recovery_s = rejoined(loop, lambda: None)
        loop.drain()
        found = judge(verdict, store.sidecar.url, loop, dropped=True)
    grown = (report["rss"] - base) >> 20
    assert found.dropped
    assert all("queue_full" in message for message in found.dropped.values())
    verdict.note = f"{len(found.dropped)} records dropped as queue_full; {grown} MiB more memory"
