"""Measure what recording costs a vLLM server: `python -m serving_gpu --out DIR`.

Needs a CUDA device, vLLM and this package's wheel; `ROUTEREPLAY_ALLOW_UNTESTED` is set, so a
release of vLLM beside the tested ones runs too. The servers of all ways take turns on one
card, load by load, in random order. With `--sizes small` they fit it side by side. With
`--sizes true` one fills it, and the others sleep meanwhile.

`--split` tells what of the cost is whose: see `ways.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import time
from pathlib import Path

from serving_gpu import model, profile, servers, turns
from serving_gpu.run import LOADS, Run
from serving_gpu.servers import Server
from serving_gpu.ways import SPLIT, WAYS, Way

START_S = 330.0
_LOADS_HELP = "with the rounds of each: decoding=6,conversations=2"
SCHEDULER = ["--scheduler-cls", "serving_gpu.scheduler.StagedScheduler"]


async def _measure(run: Run, given: argparse.Namespace, folder: Path, store_url: str) -> None:
    """Start all servers; loads take turns in random order."""
    with contextlib.ExitStack() as stack:
        running = await _start(stack, run, given, folder, store_url)
        run.write()
        for server in running.values():
            await turns.take(server, running.values())
            await run.warm_up(server)
        for number in range(max(given.loads.values())):
            for name, rounds in given.loads.items():
                ways = [way for way in given.ways if not (number and way in given.once)]
                if number >= rounds or (number and not run.has_time_for(name, ways)):
                    continue
                for way in random.sample(ways, len(ways)):
                    await turns.take(running[way.mode], running.values())
                    # The same prompts for every way of a round, fresh ones in the next.
                    await run.load(running[way.mode], way, name, number)
        for way in given.profile:
            await turns.take(running[way.mode], running.values())
            with profile.recorded(running[way.mode], given.out / f"profile-{way.name}.txt"):
                await run.load(running[way.mode], way, "decoding", 10_000, profiled=True)


async def _start(
    stack: contextlib.ExitStack, run: Run, given: argparse.Namespace, folder: Path, store_url: str
) -> dict[str, Server]:
    """Start a server for each mode: at once if they fit the card, else one after the other."""
    is_alone = given.sizes == "true"
    memory = ["--gpu-memory-utilization", str(given.utilization)]
    if is_alone:
        memory = ["--gpu-memory-utilization", "0.8", *turns.ARGUMENTS]
    memory += ["--kv-cache-memory-bytes", str(given.kv_bytes), *given.server_argument]
    running: dict[str, Server] = {}
    for number, mode in enumerate(dict.fromkeys(way.mode for way in given.ways)):
        server = servers.vllm(mode, given.port + number, folder, store_url, memory, given.out)
        stack.callback(server.stop)
        running[mode] = server
        if is_alone:
            run.results["starts_s"][mode] = round(server.wait(START_S), 1)
            await turns.sleep(server)
    for mode, server in running.items():
        if not is_alone:
            run.results["starts_s"][mode] = round(server.wait(START_S), 1)
    return running


def main() -> None:
    """Start everything, measure, print medians over capture off."""
    parser = argparse.ArgumentParser(prog="python -m serving_gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", choices=["true", "small"], default="small")
    parser.add_argument("--modes", type=_ways, default=_ways("off,json,routereplay"), dest="ways")
    parser.add_argument("--once", type=_ways, default=[], help="of them, in the first round only")
    parser.add_argument("--split", action="store_true", help="the stages of the cost")
    parser.add_argument("--profile", type=_ways, default=[], help="with py-spy, after the rounds")
    parser.add_argument("--loads", type=_loads, default=dict.fromkeys(LOADS, 6), help=_LOADS_HELP)
    parser.add_argument("--turns", type=int, default=10, help="of a conversation")
    parser.add_argument("--seconds", type=float, default=540, help="stop in time for this")
    parser.add_argument("--server-argument", action="append", default=[], help="for every vLLM")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--utilization", type=float, default=0.28)
    parser.add_argument("--kv-bytes", type=int, default=10 << 30)
    given = parser.parse_args()
    if given.split:
        given.ways = _ways(",".join(SPLIT))
        given.server_argument += SCHEDULER
    given.out.mkdir(parents=True, exist_ok=True)
    folder = model.make(
        Path(f"/tmp/routereplay-bench-model-{given.sizes}"),
        model.TRUE if given.sizes == "true" else model.SMALL,
    )
    deadline = time.monotonic() + given.seconds
    place = Path(f"/tmp/routereplay-bench-store-{given.port}")
    with servers.store(given.port - 1, place, given.out) as store:
        run = Run(given.out, store, deadline, given.turns)
        modes = [way.name for way in given.ways]
        run.results |= {"sizes": given.sizes, "modes": modes, "card": _card()}
        try:
            asyncio.run(_measure(run, given, folder, store.url))
        finally:
            run.write()
            _shorten(given.out)
    print(json.dumps(run.results["summary"], indent=1))


def _loads(text: str) -> dict[str, int]:
    named = [part.partition("=") for part in text.split(",")]
    return {name: int(rounds or 6) for name, _, rounds in named}


def _ways(text: str) -> list[Way]:
    return [WAYS[name] for name in text.split(",")]


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
