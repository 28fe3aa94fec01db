"""Measure the route store: `./scripts/bench`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from route_store import growth
from route_store.cases import CASES
from route_store.designs import DESIGNS, Design
from route_store.rounds import measure

RESULTS = Path(__file__).parents[1] / "results" / "route_store.json"

_COLUMNS = {
    "cpu_s_per_gb": "CPU s/GB",
    "client_cpu_ms": "client ms",
    "server_cpu_ms": "server ms",
    "store_cpu_ms": "engine ms",
    "wall_ms": "wall ms",
    "x_floor": "x floor",
    "x_vllm_json": "x vLLM",
}


def main() -> None:
    """Run every case with every design that is there; print ratios, keep JSON."""
    parser = argparse.ArgumentParser(prog="./scripts/bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--design", action="append", help="only these, by name")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--growth", action="store_true", help="growth, memory, expiry; two minutes")
    given = parser.parse_args()
    results: dict[str, Any] = {
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": {"cpus": len(os.sched_getaffinity(0)), "cpu": _cpu()},
        "skipped": {},
        "cases": {},
    }
    with contextlib.ExitStack() as stack:
        designs = _start(stack, given.design, results["skipped"])
        for case in () if given.growth and not given.case else CASES:
            if not given.case or case.name in given.case:
                results["cases"][case.name] = measure(designs, case, given.rounds)
                _print(results["cases"][case.name])
    earlier = json.loads(given.output.read_text()) if given.output.exists() else {}
    if given.growth:
        results["growth"] = growth.measure()
        growth.show(results["growth"])
    elif "growth" in earlier:
        results["growth"] = earlier["growth"]
    results["cases"] = earlier.get("cases", {}) | results["cases"]
    given.output.write_text(json.dumps(results, indent=1) + "\n")


def _start(
    stack: contextlib.ExitStack, wanted: list[str] | None, skipped: dict[str, str]
) -> list[Design]:
    designs = []
    for make in DESIGNS:
        try:
            design = stack.enter_context(make())
        except ImportError as error:
            skipped[error.name or "?"] = f"{error}"
            continue
        if not wanted or design.name in wanted:
            designs.append(design)
    return designs


def _print(case: dict[str, Any]) -> None:
    print(f"\n{case['title']} ({case['rounds']} rounds, steal {case['steal']:.0%})")
    print(f"{'':24}" + "".join(f"{title:>11}" for title in _COLUMNS.values()))
    for name, figure in case["designs"].items():
        print(f"{name:24}" + "".join(f"{figure.get(column, ''):>11}" for column in _COLUMNS))


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
