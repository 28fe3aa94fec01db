"""A bar chart as SVG: CPU seconds a gigabyte of each design, on a logarithmic axis."""

from __future__ import annotations

import math
from html import escape
from typing import Any

_WIDTH, _BAR, _GAP, _LEFT, _TOP = 860, 14, 22, 300, 30


def chart(cases: dict[str, Any], titles: dict[str, str]) -> str:
    """Return one group of bars for each case that moves megabytes."""
    shown = {name: case for name, case in cases.items() if case["bytes"] > 1_000_000}
    rows: list[str] = []
    y = _TOP
    most = max(d["cpu_s_per_gb"] for case in shown.values() for d in case["designs"].values())
    least = 0.1

    def at(value: float) -> float:
        share = math.log10(max(value, least) / least) / math.log10(most * 1.1 / least)
        return _LEFT + share * (_WIDTH - _LEFT - 70)

    for case in shown.values():
        rows.append(_text(10, y + 4, case["title"], "bold"))
        y += 12
        for name in [name for name in titles if name in case["designs"]]:
            value = case["designs"][name]["cpu_s_per_gb"]
            colour = "#e45756" if name.startswith("ours") else "#9aa5b1"
            rows.append(_text(24, y + _BAR - 3, titles[name]))
            width = at(value) - _LEFT
            rows.append(
                f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>'
            )
            rows.append(_text(at(value) + 6, y + _BAR - 3, f"{value:g}"))
            y += _BAR + 4
        y += _GAP
    title = _text(10, 16, "CPU seconds a gigabyte, both ends and store; logarithmic", "bold")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" '
        f'font-family="system-ui,sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{title}{"".join(rows)}</svg>\n'
    )


def _text(x: float, y: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}">{escape(text)}</text>'
