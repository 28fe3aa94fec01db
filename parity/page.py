"""The parity report as one HTML file: it opens without a network, and escapes what it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from routereplay.parity import svg
from routereplay.parity.comparison import LINES
from routereplay.parity.measurement import ENGINE_AGAIN, REPLAY_OFF, REPLAY_ON

_STYLE = """
:root{color-scheme:light dark;--line:#d0d7de;--dim:#57606a}
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child{text-align:left}
.bad{color:#d1242f;font-weight:600}.good{color:#1a7f37;font-weight:600}
.note,.legend{color:var(--dim)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:1.5rem}
svg{width:100%;height:auto;font:11px system-ui,sans-serif;fill:currentColor}
.grid{stroke:var(--line);stroke-width:1;fill:none}.line{fill:none;stroke-width:2}
.mid{text-anchor:middle}.end{text-anchor:end}
.legend span{margin-right:1rem}
.legend i{display:inline-block;width:.7rem;height:.7rem;margin-right:.3rem;border-radius:2px}
"""

_WHAT = {
    REPLAY_OFF: "Megatron, its routers choosing, against what vLLM sampled",
    REPLAY_ON: "Megatron, executing vLLM's experts, against what vLLM sampled",
    ENGINE_AGAIN: "vLLM reading the same tokens as a prompt, against itself: its noise floor",
    "Megatron again": "Megatron in another packing, against itself: its noise floor",
}


def render_page(facts: Mapping[str, Any]) -> str:
    """Return the page of what `routereplay parity --json` prints."""
    columns: Mapping[str, Mapping[str, Any]] = facts["columns"]
    body = [
        f"<h1>Parity of {escape(str(facts['checkpoint']))}</h1>",
        f'<p class="note">{escape(_subtitle(facts))}</p>',
        _verdict(facts),
        _table(columns),
        "<dl>" + "".join(_meaning(name) for name in columns) + "</dl>",
        '<div class="charts">',
        *(f"<section><h2>{title}</h2>{chart}</section>" for title, chart in _charts(facts)),
        "</div>",
        "<h2>What was run</h2>",
        f"<pre>{escape(json.dumps(facts['run'], indent=2))}</pre>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>routereplay parity</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _subtitle(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['sampled_tokens']} sampled tokens of {facts['trajectories']} trajectories, "
        f"{facts['tokens']} tokens in all"
    )


def _verdict(facts: Mapping[str, Any]) -> str:
    exceeded: Sequence[str] = facts["gates"]["exceeded"]
    if not exceeded:
        limits = facts["gates"]["limits"]
        return (
            f'<p class="good">within the limits: mean_abs_pct {limits["mean_abs_pct"]:g} %, '
            f"KL {limits['top20_kl']:g} nats</p>"
        )
    return f'<p class="bad">over the limits: {escape("; ".join(exceeded))}</p>'


def _table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    rows = [
        f"<tr><td>{escape(text)}</td>"
        + "".join(f"<td>{form.format(column[name])}</td>" for column in columns.values())
        + "</tr>"
        for name, text, form in LINES
    ]
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _meaning(column: str) -> str:
    what = next((text for name, text in _WHAT.items() if column.startswith(name)), "")
    return f"<dt><b>{escape(column)}</b></dt><dd class='note'>{escape(what)}</dd>"


def _charts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    columns = facts["columns"]
    layers = range(1, 1 + len(columns[REPLAY_OFF]["layers_differ"]))
    by_position = dict(facts["by_position"])
    edges = by_position.pop("edges")
    middles = [(left + right) / 2 for left, right in pairwise(edges)]
    scatter = {"x_name": "vLLM's log-prob", "y_name": "Megatron's log-prob"}
    return [
        (
            "Expert sets that differ, by MoE layer",
            svg.lines(
                list(layers),
                {
                    name: [100 * share for share in column["layers_differ"]]
                    for name, column in columns.items()
                },
                x_name="MoE layer",
                y_name="% of rows",
            ),
        ),
        (
            "Mismatch by position in the trajectory",
            svg.lines(middles, by_position, x_name="position", y_name="mean |difference|, nats"),
        ),
        ("Log-probs, replay off", svg.points({REPLAY_OFF: facts["points"][REPLAY_OFF]}, **scatter)),
        ("Log-probs, replay on", svg.points({REPLAY_ON: facts["points"][REPLAY_ON]}, **scatter)),
    ]
