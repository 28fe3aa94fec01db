"""Runs loads and keeps what they saw."""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp
from route_store.processes import cpu_seconds, family

from serving_gpu import check
from serving_gpu.loads import Load
from serving_gpu.servers import Server
from serving_gpu.ways import Way

LOADS = ("decoding", "conversations")


class Run:
    """One run: its results are written after every load, so that a cut run has what it has."""

    def __init__(self, out: Path, store: Server, deadline: float, turns: int) -> None:
        self._loads = {
            "decoding": Load.decoding,
            "conversations": functools.partial(Load.conversations, turns=turns),
        }
        self._out = out
        self._store = store
        self._deadline = deadline
        self.results: dict[str, Any] = {"starts_s": {}, "loads": [], "profiled": [], "summary": {}}
        self._longest: dict[str, float] = defaultdict(float)

    def has_time_for(self, name: str, ways: list[Way]) -> bool:
        """Whether one more load of each of the ways would end in time."""
        left = self._deadline - time.monotonic()
        return left > sum(self._longest[f"{name}-{way.name}"] for way in ways) * 1.1

    async def warm_up(self, server: Server) -> None:
        """Let a server compile what it compiles with its first requests."""
        async with _client() as http:
            await Load(http, server.url, 20_000, {}).decoding(128, 128, 512, 16)
            await Load(http, server.url, 20_001, {}).conversations(8, 2, 1000, 8)

    async def load(
        self, server: Server, way: Way, name: str, seed: int, *, profiled: bool = False
    ) -> None:
        """Run one load one way and note what it saw; a profiled one is no measurement."""
        began = time.monotonic()
        front, *engine = family(server.process.pid)
        pids = {"front": [front], "engine": engine, "store": family(self._store.process.pid)}
        async with _client() as http:
            load = Load(http, server.url, seed, way.xargs)
            before = cpu_seconds(pids)
            seen = await self._loads[name](load)
            spent = {
                f"{group}_cpu_s": round(after - before[group], 2)
                for group, after in cpu_seconds(pids).items()
            }
        note = {
            "mode": way.name,
            "load": name,
            "round": seed,
            **seen.figures(),
            **spent,
        }
        if way.is_recorded:
            note["store"] = check.kept(self._store.url, seen)
        self._longest[f"{name}-{way.name}"] = max(
            self._longest[f"{name}-{way.name}"], time.monotonic() - began
        )
        print(json.dumps(note), flush=True)
        self.results["profiled" if profiled else "loads"].append(note)
        self.write()

    def write(self) -> None:
        """Write the results and their summary."""
        self.results["summary"] = _summary(self.results["loads"])
        (self._out / "serving.json").write_text(json.dumps(self.results, indent=1) + "\n")


def _client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None),
        connector=aiohttp.TCPConnector(limit=0),
        read_bufsize=1 << 20,
    )


def _summary(loads: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians by load and mode, and each mode over capture off in the same round."""
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
                **{
                    f"{of}_cpu_s": statistics.median(n[f"{of}_cpu_s"] for n in notes)
                    for of in ("front", "engine")
                },
                "p95_s": statistics.median(n["p95_s"] for n in notes),
                "response_bytes_per_request": statistics.median(
                    n["response_bytes_per_request"] for n in notes
                ),
            }
            for mode, notes in by_mode.items()
        }
        offs = {note["round"]: note["requests_per_s"] for note in by_mode.get("off", ())}
        for mode, notes in by_mode.items():
            paired = [n["requests_per_s"] / offs[n["round"]] for n in notes if n["round"] in offs]
            if paired:
                figures[mode]["x_off"] = round(statistics.median(paired), 4)
                figures[mode]["x_off_rounds"] = [round(ratio, 4) for ratio in paired]
        summary[name] = figures
    return summary
