"""Measure what recording costs a vLLM server: `python -m serving_gpu --out DIR`.

Needs a CUDA device, vLLM and this package's wheel; `ROUTEREPLAY_ALLOW_UNTESTED` is set, so a
release of vLLM beside the tested ones runs too. With `--sizes small` the servers of all modes
run side by side and take turns, load by load, in random order. With `--sizes true` one server
fills the card, so the modes come one after the other: compare runs in both orders.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp
from route_store.processes import cpu_seconds, family

from serving_gpu import check, model, servers
from serving_gpu.loads import Load
from serving_gpu.servers import MODES, Server

LOADS = ("decoding", "conversations")
START_S = 330.0


class Run:
    """One run: its results are written after every load, so that a cut run has what it has."""

    def __init__(self, out: Path, store: Server, deadline: float) -> None:
        self._out = out
        self._store = store
        self._deadline = deadline
        self.results: dict[str, Any] = {"starts_s": {}, "loads": [], "summary": {}}
        self._longest: dict[str, float] = defaultdict(float)

    def has_time_for(self, loads: int, until: float | None = None) -> bool:
        """Whether that many more loads of either kind would end in time."""
        left = min(self._deadline, until or self._deadline) - time.monotonic()
        return left > sum(self._longest.values()) / max(len(self._longest), 1) * loads * 1.1

    async def load(self, server: Server, name: str, seed: int, *, is_warm_up: bool = False) -> None:
        """Run one load against one server and note what it saw."""
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        began = time.monotonic()
        pids = {"vllm": family(server.process.pid), "store": family(self._store.process.pid)}
        async with aiohttp.ClientSession(
            timeout=timeout, connector=connector, read_bufsize=1 << 20
        ) as http:
            load = Load(http, server.url, seed)
            if is_warm_up:
                await load.decoding(32, 32, 128, 32)
                return
            before = cpu_seconds(pids)
            seen = await getattr(load, name)()
            spent = {name: after - before[name] for name, after in cpu_seconds(pids).items()}
        note = {
            "mode": server.name,
            "load": name,
            **seen.figures(),
            "vllm_cpu_s": round(spent["vllm"], 2),
            "store_cpu_s": round(spent["store"], 2),
        }
        if server.name == "routereplay":
            note["store"] = check.kept(self._store.url, seen)
        self._longest[f"{name}-{server.name}"] = max(
            self._longest[f"{name}-{server.name}"], time.monotonic() - began
        )
        print(json.dumps(note), flush=True)
        self.results["loads"].append(note)
        self.write()

    def write(self) -> None:
        """Write the results and their summary."""
        self.results["summary"] = _summary(self.results["loads"])
        (self._out / "serving.json").write_text(json.dumps(self.results, indent=1) + "\n")


def _summary(loads: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians by load and mode, and each mode over capture off."""
    summary: dict[str, Any] = {}
    for name in LOADS:
        by_mode = defaultdict(list)
        for note in loads:
            if note["load"] == name:
                by_mode[note["mode"]].append(note)
        figures = {
            mode: {
                "runs": len(notes),
                "requests_per_s": statistics.median(n["requests_per_s"] for n in notes),
                "spread": [
                    min(n["requests_per_s"] for n in notes),
                    max(n["requests_per_s"] for n in notes),
                ],
                "p95_s": statistics.median(n["p95_s"] for n in notes),
                "response_bytes_per_request": statistics.median(
                    n["response_bytes_per_request"] for n in notes
                ),
            }
            for mode, notes in by_mode.items()
        }
        if "off" in figures:
            off = figures["off"]["requests_per_s"]
            for figure in figures.values():
                figure["x_off"] = round(figure["requests_per_s"] / off, 4)
        summary[name] = figures
    return summary


async def _together(run: Run, given: argparse.Namespace, folder: Path, store_url: str) -> None:
    """All servers at once; loads take turns in random order."""
    memory = ["--gpu-memory-utilization", str(given.utilization)]
    memory += ["--kv-cache-memory-bytes", str(given.kv_bytes), *given.server_argument]
    with contextlib.ExitStack() as stack:
        running = []
        for number, mode in enumerate(given.modes):
            server = servers.vllm(mode, given.port + number, folder, store_url, memory, given.out)
            stack.callback(server.stop)
            running.append(server)
        for server in running:
            run.results["starts_s"][server.name] = round(server.wait(START_S), 1)
        run.write()
        for server in running:
            await run.load(server, "", 0, is_warm_up=True)
        for number in range(given.rounds):
            if number and not run.has_time_for(len(running) * len(LOADS)):
                break
            for name in LOADS:
                for server in random.sample(running, len(running)):
                    # The same prompts for every mode of a round, fresh ones in the next.
                    await run.load(server, name, number)


async def _apart(run: Run, given: argparse.Namespace, folder: Path, store_url: str) -> None:
    """One server after the other, each with an equal share of the time."""
    memory = ["--gpu-memory-utilization", "0.93", *given.server_argument]
    began = time.monotonic()
    share = given.seconds / len(given.modes)
    for position, mode in enumerate(given.modes):
        until = began + share * (position + 1)
        server = servers.vllm(mode, given.port, folder, store_url, memory, given.out)
        try:
            run.results["starts_s"][mode] = round(server.wait(START_S), 1)
            await run.load(server, "", 0, is_warm_up=True)
            for number in range(given.rounds):
                for name in LOADS:
                    if number == 0 or run.has_time_for(1, until - 15):
                        await run.load(server, name, number)
        finally:
            server.stop()


def main() -> None:
    """Start everything, measure, print medians over capture off."""
    parser = argparse.ArgumentParser(prog="python -m serving_gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", choices=["true", "small"], default="small")
    parser.add_argument("--modes", type=lambda text: text.split(","), default=list(MODES))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=540, help="stop in time for this")
    parser.add_argument("--server-argument", action="append", default=[], help="for every vLLM")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--utilization", type=float, default=0.28)
    parser.add_argument("--kv-bytes", type=int, default=10 << 30)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    folder = model.make(
        Path("/tmp/routereplay-bench-model"), model.TRUE if given.sizes == "true" else model.SMALL
    )
    deadline = time.monotonic() + given.seconds
    with servers.store(given.port - 1, Path("/tmp/routereplay-bench-store"), given.out) as store:
        run = Run(given.out, store, deadline)
        run.results |= {"sizes": given.sizes, "modes": given.modes, "card": _card()}
        measure = _together if given.sizes == "small" else _apart
        try:
            asyncio.run(measure(run, given, folder, store.url))
        finally:
            run.write()
            _shorten(given.out)
    print(json.dumps(run.results["summary"], indent=1))


def _card() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _shorten(folder: Path) -> None:
    """Keep the beginning and the end of each log."""
    for log in folder.glob("*.log"):
        text = log.read_text(errors="replace")
        if len(text) > 200_000:
            log.write_text(text[:100_000] + "\n...\n" + text[-100_000:])


if __name__ == "__main__":
    main()
