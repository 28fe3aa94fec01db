"""The parity report as one HTML file: it opens without a network, and escapes what it shows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from routereplay.parity import svg
from routereplay.parity.column_names import (
    DENSE_SCORES,
    ENGINE_AGAIN,
    MEGATRON_AGAIN,
    REPLAY_OFF,
    REPLAY_ON,
    kind_of,
)
from routereplay.parity.comparison import LINES, in_words
from routereplay.parity.page_style import STYLE

_WHAT = {
    DENSE_SCORES: "Megatron against what vLLM sampled; a dense model routes nothing to replay",
    REPLAY_OFF: "Megatron, its routers choosing, against what vLLM sampled",
    REPLAY_ON: "Megatron, executing vLLM's experts, against what vLLM sampled",
    ENGINE_AGAIN: "vLLM reading the same tokens as a prompt, against itself: its noise floor",
    MEGATRON_AGAIN: "Megatron, live, in another packing, against itself: its noise floor",
}
_COLORS = dict(zip(_WHAT, svg.COLORS, strict=False))


def render_page(facts: Mapping[str, Any]) -> str:
    """Return the page of what `routereplay parity --json` prints."""
    columns: Mapping[str, Mapping[str, Any]] = facts["columns"]
    body = [
        "<h1>Parity of vLLM and Megatron</h1>",
        f'<p class="note"><b>{escape(str(facts["checkpoint"]))}</b><br>'
        f"{escape(_subtitle(facts))}</p>",
        _verdict(facts),
        *(f'<p class="note">{escape(note)}</p>' for note in facts["notes"]),
        *(_table(title, part, facts) for title, part in _by_topology(facts)),
        "<dl>" + "".join(_meaning(kind) for kind in _WHAT if _has(columns, kind)) + "</dl>",
        '<div class="charts">',
        *(f"<section><h2>{title}</h2>{chart}</section>" for title, chart in _charts(facts)),
        "</div>",
        "<details><summary>What was run</summary>",
        f"<pre>{escape(json.dumps(facts['run'], indent=2))}</pre></details>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>routereplay parity</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _subtitle(facts: Mapping[str, Any]) -> str:
    model = facts["model"]
    kind = "dense: no layer routes"
    if model["moe_layers"]:
        kind = f"{model['moe_layers']} route to {model['topk']} of {model['experts']} experts"
    return (
        f"{model['model_type']}, {model['layers']} layers, {kind} · "
        f"{facts['sampled_tokens']:,} sampled tokens of {facts['trajectories']} trajectories, "
        f"{facts['tokens']:,} tokens in all"
    )


def _verdict(facts: Mapping[str, Any]) -> str:
    exceeded: Sequence[str] = facts["gates"]["exceeded"]
    limits = facts["gates"]["limits"]
    said = (
        f"limits of this family: mean_abs_pct {limits['mean_abs_pct']:g} %, "
        f"KL {limits['top20_kl']:g} nats"
    )
    if exceeded:
        listed = "".join(f"<li>{escape(line)}</li>" for line in exceeded)
        return f'<div class="verdict bad"><b>Over the limits</b><ul>{listed}</ul>{said}</div>'
    ratios = facts.get("ratios") or {}
    smaller = ""
    if math.isfinite(off := ratios.get("kl_off_over_on", math.nan)):
        smaller = f"<br>The KL with replay off is {off:.1f} times that with replay on"
        if math.isfinite(floor := ratios["kl_on_over_engine_again"]):
            smaller += f", which is {floor:.2g} times vLLM's distance from itself"
        smaller += "."
    return f'<div class="verdict good"><b>Within the limits</b> ({said}){smaller}</div>'


def _by_topology(facts: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Return the tables: of each topology its name and, by a column's heading, the column.

    vLLM's own floor is in each, because it is what the others are held against.
    """
    tables: dict[str, dict[str, str]] = {}
    for column in facts["columns"]:
        if (kind := kind_of(column)) != ENGINE_AGAIN:
            tables.setdefault(column.removeprefix(kind).strip(), {})[kind] = column
    for named in tables.values():
        named[ENGINE_AGAIN] = ENGINE_AGAIN
    names = dict(zip(tables, facts["megatron_stages_s"], strict=False))
    return [
        (
            f"Megatron over {names.get(topology, topology)}" if len(tables) > 1 else "",
            {kind: named[kind] for kind in _WHAT if kind in named},
        )
        for topology, named in tables.items()
    ]


def _table(title: str, part: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    columns = facts["columns"]
    head = "".join(
        f'<th scope="col"><i style="background:{_COLORS[kind]}"></i>{escape(kind)}</th>'
        for kind in part
    )
    rows = [
        f'<tr><th scope="row">{escape(text)}</th>'
        + "".join(
            f'<td class="{_mark(facts, kind, name, columns[column][name])}">'
            f"{in_words(columns[column][name], form)}</td>"
            for kind, column in part.items()
        )
        + "</tr>"
        for name, text, form in LINES
    ]
    caption = f"<h2>{escape(title)}</h2>" if title else ""
    return (
        f'{caption}<div class="wide"><table><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _mark(facts: Mapping[str, Any], kind: str, name: str, value: float | None) -> str:
    """Return the class of a cell: whether a figure that has a limit is over it."""
    limit = facts["gates"]["limits"].get(name)
    if limit is None or value is None or kind not in {REPLAY_ON, DENSE_SCORES}:
        return ""
    return "good" if value <= limit else "bad"


def _has(columns: Mapping[str, Any], kind: str) -> bool:
    return any(kind_of(column) == kind for column in columns)


def _meaning(kind: str) -> str:
    return f"<div><dt>{escape(kind)}</dt><dd class='note'>{escape(_WHAT[kind])}</dd></div>"


def _charts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    columns = facts["columns"]
    first = {kind: columns[kind] for kind in _WHAT if kind in columns}
    by_position = dict(facts["by_position"])
    edges = by_position.pop("edges")
    middles = [(left + right) / 2 for left, right in pairwise(edges)]
    found = []
    if layers := max(len(column["layers_differ"]) for column in first.values()):
        shares = {
            kind: [100 * share for share in column["layers_differ"]]
            for kind, column in first.items()
        }
        chart = svg.lines(
            list(range(1, layers + 1)),
            shares,
            colors=_COLORS,
            x_name="MoE layer",
            y_name="% of rows",
            whole_x=True,
        )
        found.append(("Expert sets that differ, by MoE layer", chart))
    along = {kind: by_position[kind] for kind in _WHAT if kind in by_position}
    chart = svg.lines(
        middles, along, colors=_COLORS, x_name="position", y_name="mean |difference|, nats"
    )
    found.append(("Mismatch by position in the trajectory", chart))
    pairs = [pair for points in facts["points"].values() for pair in points]
    for kind, points in facts["points"].items():
        chart = svg.points(
            points,
            color=_COLORS[kind],
            within=(min(map(min, pairs)), max(map(max, pairs))),
            x_name="vLLM's log-prob",
            y_name="Megatron's log-prob",
        )
        found.append((f"Log-probs of the sampled tokens, {escape(kind)}", chart))
    return found
