"""Interleaved rounds in random order; medians of CPU time over all processes involved.

Wall time on a shared machine moves by a factor of two, CPU seconds a byte by a tenth, and
their ratio inside one run by less. So designs take turns, and ratios are what counts.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from typing import Any

from route_store.cases import Case
from route_store.designs import Design
from route_store.processes import cpu_seconds, cpu_ticks, steal_share

WARM_UPS = 1
_SETTLE_S = 0.01
"""A server has still to close what it answered."""


def measure(designs: list[Design], case: Case, rounds: int) -> dict[str, Any]:
    """Return the figures of each design that has the case."""
    able = [design for design in designs if case.name in design.operations]
    samples: dict[str, list[dict[str, float]]] = defaultdict(list)
    ticks = cpu_ticks()
    for number in range(WARM_UPS + rounds):
        for design in random.sample(able, len(able)):
            sample = _once(design, case)
            if number >= WARM_UPS:
                samples[design.name].append(sample)
    figures = {name: _summary(found) for name, found in samples.items()}
    for name in ("floor", "vllm_json"):
        if name in figures:
            for figure in figures.values():
                figure[f"x_{name}"] = figure["cpu_s_per_gb"] / figures[name]["cpu_s_per_gb"]
    return {
        "title": case.title,
        "bytes": case.nbytes,
        "rounds": rounds,
        "steal": round(steal_share(ticks), 3),
        "designs": {name: _rounded(figure) for name, figure in figures.items()},
    }


def _once(design: Design, case: Case) -> dict[str, float]:
    operation = design.operations[case.name]
    before, started = cpu_seconds(design.pids), time.perf_counter()
    cleanups = [operation() for _ in range(case.repeat)]
    wall = time.perf_counter() - started
    time.sleep(_SETTLE_S)
    after = cpu_seconds(design.pids)
    for cleanup in cleanups:
        if cleanup is not None:
            cleanup()
    spent = {name: (after[name] - before[name]) / case.repeat for name in before}
    gigabytes = case.nbytes / 1e9
    return {
        "cpu_s_per_gb": sum(spent.values()) / gigabytes,
        "client_cpu_ms": 1000 * spent["client"],
        "server_cpu_ms": 1000 * spent["server"],
        "store_cpu_ms": 1000 * spent["store"],
        "wall_ms": 1000 * wall / case.repeat,
    }


def _summary(samples: list[dict[str, float]]) -> dict[str, float]:
    figures = {name: statistics.median(s[name] for s in samples) for name in samples[0]}
    ordered = sorted(sample["cpu_s_per_gb"] for sample in samples)
    figures["cpu_s_per_gb_q1"] = ordered[len(ordered) // 4]
    figures["cpu_s_per_gb_q3"] = ordered[len(ordered) * 3 // 4]
    return figures


def _rounded(figure: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.3g}") for name, value in figure.items()}
