"""Rows of the tables that `docs/performance.md` shows of runs on a GPU."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]


def throughput(run: dict[str, Any], load: str) -> Rows:
    """Return a row for each way of one load of a run: throughput, latency, bytes, over off."""
    return [
        {
            "": f"{run['card'].split()[1]}, {run['sizes']}, {mode}",
            "runs": figure["runs"],
            "requests/s": figure["requests_per_s"],
            "spread": _spread(figure["spread"]),
            "p95 s": figure["p95_s"],
            "bytes of a response": round(figure["response_bytes_per_request"]),
            "x off": figure["x_off"],
            "of single rounds": _spread([min(figure["x_off_rounds"]), max(figure["x_off_rounds"])]),
        }
        for mode in ("off", "json", "routereplay")
        if (figure := run["summary"][load].get(mode)) is not None
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
