"""Rows of the tables that `docs/performance.md` shows of runs on a GPU."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]


def throughput(figures: dict[str, dict[str, Any]]) -> Rows:
    """Return a row for each way of one load: throughput, latency, bytes, and over capture off."""
    return [
        {
            "": mode,
            "runs": figure["runs"],
            "requests/s": figure["requests_per_s"],
            "spread": _spread(figure["spread"]),
            "p95 s": figure["p95_s"],
            "bytes of a response": round(figure["response_bytes_per_request"]),
            "x off": figure["x_off"],
        }
        for mode, figure in figures.items()
    ]


def stages(figures: dict[str, dict[str, Any]], order: tuple[str, ...]) -> Rows:
    """Return a row for each way, in the order given, with the CPU seconds of both processes."""
    return [
        {
            "": mode,
            "runs": figure["runs"],
            "requests/s": figure["requests_per_s"],
            "spread": _spread(figure["spread"]),
            "engine, CPU s": figure["engine_cpu_s"],
            "front end, CPU s": figure["front_cpu_s"],
            "x off": figure["x_off"],
        }
        for mode in order
        if (figure := figures.get(mode)) is not None
    ]


def _spread(found: list[float]) -> str:
    return f"{found[0]:.2f}-{found[1]:.2f}"
