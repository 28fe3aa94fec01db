"""Make `docs/performance.md` and its plot from the results: `python -m route_store.page`.

Figures come from `benchmarks/results/`, the words around them from `performance.md.in`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving_gpu.tables import stages, throughput
from serving_gpu.ways import SPLIT

from route_store.plot import chart

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "performance.svg"
_RESULTS = ROOT / "benchmarks" / "results"
_WORDS = Path(__file__).with_name("performance.md.in")

TITLES = {
    "floor": "floor: raw TCP, one buffer",
    "plain_redis": "redis-py to Valkey, no service",
    "ray": "Ray's object store, one node",
    "ours_memory": "routereplay, durability memory",
    "ours_process": "routereplay, durability process",
    "naive": "FastAPI + redis-py, httpx",
    "vllm_json": "vLLM's own: base64 .npy in JSON",
}


def generate() -> tuple[str, str]:
    """Return the page and the plot."""
    found = json.loads((_RESULTS / "route_store.json").read_text())
    words = _WORDS.read_text()
    parts = {
        "MACHINE": _machine(found),
        "CASES": "\n\n".join(_case(case) for case in found["cases"].values()),
        "SKIPPED": _skipped(found["skipped"]),
        **{name.upper(): _rows(rows) for name, rows in found["growth"].items()},
        "BEFORE": _before(found),
        **_serving(),
    }
    for name, text in parts.items():
        words = words.replace(f"@{name}@", text)
    return words, chart(found["cases"], TITLES)


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    return f"{machine['cpus']} CPUs ({machine['cpu']}), {found['made']}"


def _case(case: dict[str, Any]) -> str:
    title = f"**{case['title'][0].upper()}{case['title'][1:]}**"
    names = [name for name in TITLES if name in case["designs"]]
    if case["bytes"] < 1_000_000:
        rows = [
            {
                "": TITLES[name],
                "client, CPU ms": figure["client_cpu_ms"],
                "server, CPU ms": figure["server_cpu_ms"],
                "engine, CPU ms": figure["store_cpu_ms"],
            }
            for name in names
            for figure in [case["designs"][name]]
        ]
    else:
        rows = [
            {
                "": TITLES[name],
                "CPU s/GB": figure["cpu_s_per_gb"],
                "quartiles": f"{figure['cpu_s_per_gb_q1']:g}-{figure['cpu_s_per_gb_q3']:g}",
                "x floor": figure["x_floor"],
                "x vLLM": figure.get("x_vllm_json", ""),
            }
            for name in names
            for figure in [case["designs"][name]]
        ]
    about = f"{case['rounds']} rounds, {case['steal']:.0%} of the CPU stolen meanwhile"
    return f"{title} ({about})\n\n{_rows(rows)}"


def _skipped(skipped: dict[str, str]) -> str:
    if not skipped:
        return ""
    named = "; ".join(f"{name} ({why})" for name, why in skipped.items())
    return f"Not there when this was measured, and left out: {named}."


def _rows(rows: Any) -> str:
    """Return a Markdown table of rows with the same keys."""
    rows = rows if isinstance(rows, list) else [rows]
    names = [name.replace("_", " ") for name in rows[0]]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _before(found: dict[str, Any]) -> str:
    """Return what the same cases cost before the work that the profiles led to."""
    before = json.loads((_RESULTS / "route_store_before.json").read_text())["cases"]
    rows = []
    for name, case in found["cases"].items():
        then, now = before[name]["designs"], case["designs"]
        rows.append(
            {
                "": case["title"],
                "x floor, before": then["ours_memory"]["x_floor"],
                "x floor, now": now["ours_memory"]["x_floor"],
            }
        )
    return _rows(rows)


def _serving() -> dict[str, str]:
    """Return the tables of the runs on a GPU."""
    runs = [_gpu(name) for name in ("h100_true", "h200_true", "h100_small", "h200_small")]
    return {
        **{
            f"SERVING_{load.upper()}": _rows([row for run in runs for row in throughput(run, load)])
            for load in ("decoding", "conversations")
        },
        "SERVING_STAGES": _rows(stages(_gpu("h100_split")["summary"]["decoding"], SPLIT)),
    }


def _gpu(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_RESULTS / f"serving_gpu_{name}.json").read_text())
    return found


def main() -> None:
    """Write both files."""
    page, plot = generate()
    PAGE.write_text(page)
    PLOT.write_text(plot)


if __name__ == "__main__":
    main()
