"""Does it stay as it is: with many requests, many writers, churn, and much that expires at once."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis

from route_store import data
from route_store.processes import cpu_seconds, peak_rss, rss
from route_store.store import Store, running
from routereplay.patches.vllm.sender import Sender
from routereplay.wire.digest import Buffer

_PEAK = """
import sys
from route_store.processes import peak_rss
from routereplay.client import RouteStoreClient
import os
with RouteStoreClient(sys.argv[1]) as store:
    store.fetch_request("warm")
    before = peak_rss(os.getpid())
    payload = store.fetch_request("peak").experts.nbytes
    print((peak_rss(os.getpid()) - before) / payload)
"""


def measure() -> dict[str, Any]:
    """Return all parts; each has a store of its own."""
    return {
        "requests": _requests((1, 1000, 10_000)),
        "writers": _writers((1, 4, 16, 64)),
        "churn": _churn(),
        "expiry": _expiry(1500),
        "slices": _slices(),
        "peak_memory": _peak_memory(),
    }


def _requests(counts: tuple[int, ...]) -> list[dict[str, float]]:
    """Fetch one small request while 1 to 10k are stored."""
    (turn,) = data.conversation(1, 20)
    found, stored = [], 0
    with running() as store:
        store.put(turn, "probe")
        for count in counts:
            for number in range(stored, count - 1):
                store.put(turn, f"fill-{number}")
            stored = count - 1
            before, times = cpu_seconds(store.pids), []
            for _ in range(300):
                began = time.perf_counter()
                store.client.fetch_request("probe")
                times.append(time.perf_counter() - began)
            after = cpu_seconds(store.pids)
            spent = sum(after[name] - before[name] for name in ("server", "store"))
            found.append(
                {
                    "stored": count,
                    "server_cpu_ms": round(1000 * spent / len(times), 3),
                    "p50_ms": round(1000 * statistics.median(times), 2),
                }
            )
    return found


def _writers(counts: tuple[int, ...]) -> list[dict[str, float]]:
    """Ingest bodies of 1 MB from many connections at once."""
    (turn,) = data.conversation(1, 2731)
    found = []
    for count in counts:
        with running() as store:
            senders = [store.sender() for _ in range(count)]
            bodies = 96
            frames = [data.frames(turn, data.fresh_id("w"), None) for _ in range(bodies)]
            # Each writer takes every count-th body.
            shares = [frames[number::count] for number in range(count)]
            before, began = cpu_seconds(store.pids), time.perf_counter()
            with ThreadPoolExecutor(count) as pool:
                each = pool.map(_write, itertools.repeat(store), senders, shares)
                times = [seconds for share in each for seconds in share]
            wall, after = time.perf_counter() - began, cpu_seconds(store.pids)
            spent = sum(after[name] - before[name] for name in ("server", "store"))
            gigabytes = bodies * turn.rows.nbytes / 1e9
            found.append(
                {
                    "writers": count,
                    "server_cpu_s_per_gb": round(spent / gigabytes, 2),
                    "mb_per_s": round(1000 * gigabytes / wall),
                    "p50_ms": round(1000 * statistics.median(times), 1),
                    "p99_ms": round(1000 * statistics.quantiles(times, n=100)[98], 1),
                    "sidecar_peak_mb": round(peak_rss(store.pids["server"][0]) / 1e6),
                }
            )
            for sender in senders:
                sender.close()
    return found


def _write(store: Store, sender: Sender, bodies: list[list[list[Buffer]]]) -> list[float]:
    times = []
    for body in bodies:
        began = time.perf_counter()
        store.post(sender, body)
        times.append(time.perf_counter() - began)
    return times


def _churn() -> dict[str, float]:
    """Store records of mixed sizes, delete most, store again; the engine's memory a live byte."""
    shapes = [data.conversation(1, rows)[0] for rows in (60, 300, 1500, 6000)]
    with running() as store:
        engine = store.pids["store"][0]
        base, live, names = rss(engine), 0, []

        def fill(kind: str, target: int) -> None:
            nonlocal live
            for number, turn in enumerate(itertools.cycle(shapes)):
                if live >= target:
                    return
                store.put(turn, f"{kind}-{number}")
                names.append((f"{kind}-{number}", turn.rows.nbytes))
                live += turn.rows.nbytes

        fill("first", 300_000_000)
        full = (rss(engine) - base) / live
        kept = names[::5]
        for name, nbytes in names:
            if (name, nbytes) not in kept:
                store.client.delete_request(name)
                live -= nbytes
        time.sleep(2)
        emptied = (rss(engine) - base) / live
        fill("again", 300_000_000)
        return {
            "full_rss_per_live_byte": round(full, 2),
            "after_deleting_four_fifths": round(emptied, 2),
            "refilled": round((rss(engine) - base) / live, 2),
        }


def _expiry(megabytes: int) -> dict[str, float]:
    """Let much expire at about one time, and ask the engine for a PONG every few milliseconds."""
    (turn,) = data.conversation(1, 20_834)
    ttl_s = 20
    with running(ROUTEREPLAY_TTL_S=str(ttl_s), ROUTEREPLAY_MAX_MEMORY_BYTES=str(4 << 30)) as store:
        engine = redis.Redis(unix_socket_path=store.engine_path)
        for number in range(megabytes // 8):
            store.put(turn, f"e-{number}")
        full = int(engine.info("memory")["used_memory"])
        stalls: list[tuple[float, int]] = []
        deadline = time.monotonic() + 120
        left = full
        while time.monotonic() < deadline and left > full // 20:
            began = time.perf_counter()
            engine.ping()
            stalls.append((time.perf_counter() - began, 0))
            if len(stalls) % 100 == 0:
                left = int(engine.info("memory")["used_memory"])
            time.sleep(0.003)
        return {
            "stored_mb": round(full / 1e6),
            "left_mb": round(left / 1e6),
            "longest_stall_ms": round(1000 * max(stall for stall, _ in stalls), 1),
            "pings": len(stalls),
        }


def _slices() -> list[dict[str, float]]:
    """Bytes that a slice moves: from the engine, and to the client."""
    (turn,) = data.conversation(1, 20_834)
    found = []
    asked: dict[str, dict[str, range]] = {
        "all": {},
        "layers 12:24 of 48": {"layers": range(12, 24)},
        "layers 0:6 of 48": {"layers": range(6)},
        "tokens 0:2048": {"tokens": range(2048)},
    }
    with running() as store:
        store.put(turn, "slices")
        engine = redis.Redis(unix_socket_path=store.engine_path)

        def sent() -> int:
            return int(engine.info("stats")["total_net_output_bytes"])

        idle = -sent() + sent()
        for name, cut in asked.items():
            before = sent()
            routes = store.client.fetch_request("slices", **cut)  # type: ignore[arg-type]
            moved = sent() - before - idle
            found.append(
                {
                    "slice": name,
                    "asked": routes.experts.nbytes,
                    "engine_sent": moved,
                    "client_received": store.received_bytes(f"slices {name}", cut),
                }
            )
    return found


def _peak_memory() -> dict[str, float]:
    """Memory on top of what was there, over the payload: 48 MB in and out."""
    (turn,) = data.conversation(1, 125_000)
    (small,) = data.conversation(1, 100)
    with running(ROUTEREPLAY_DURABILITY="memory") as store:
        store.put(small, "warm")
        sidecar = store.pids["server"][0]
        before = peak_rss(sidecar)
        store.put(turn, "peak")
        ingest = (peak_rss(sidecar) - before) / turn.rows.nbytes
        client = subprocess.run(
            [sys.executable, "-c", _PEAK, store.url],
            env=dict(os.environ),
            capture_output=True,
            text=True,
            check=True,
        )
        grown = (peak_rss(sidecar) - before) / turn.rows.nbytes
    return {
        "sidecar_ingest_x_payload": round(ingest, 2),
        "sidecar_ingest_then_fetch_x_payload": round(grown, 2),
        "client_fetch_x_payload": round(float(client.stdout), 2),
    }


def table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows of one kind."""
    print(f"\n{title}\n" + "".join(f"{name:>22}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value!s:>22}" for value in row.values()))


def show(growth: dict[str, Any], out: Callable[[str, list[dict[str, Any]]], None] = table) -> None:
    """Print every part."""
    for title, rows in growth.items():
        out(title, rows if isinstance(rows, list) else [rows])
