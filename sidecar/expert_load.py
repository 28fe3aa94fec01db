"""How the rows of an answer fall on the experts: for heat maps and comparisons.

Shape legend: T tokens, L layers, K topk, E experts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypedDict

import numpy as np

from routereplay.sidecar.fetch import Response
from routereplay.sidecar.ready import Ready
from routereplay.wire.codec import read_rows
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import BadRequest
from routereplay.wire.load import expert_counts, layer_loads, without_dense

MAX_COUNTED_BYTES = 256 * 1024 * 1024
"""Routes that are counted for one answer."""


class LoadOfLayer(TypedDict):
    """How even the choices of one decoder layer are: `routereplay.wire.load.LayerLoad`."""

    layer: int
    used: int
    busiest: int
    max_over_mean: float
    entropy: float


class TurnOfLoad(TypedDict):
    """A sealed turn that could be counted alone."""

    request_id: str
    choice: int
    token_start: int
    token_stop: int
    policy_versions: list[str]


class ExpertLoad(TypedDict):
    """How rows fall on the experts: `counts[layer - layer_start][expert]`."""

    model: str
    topk: int
    num_layers: int
    num_experts: int
    layer_start: int
    turn: int | None
    policy: str | None
    rows: int
    turns: list[TurnOfLoad]
    counts: list[list[int]]
    layers: list[LoadOfLayer]


async def expert_load(
    found: Response, *, turn: int | None = None, policy: str | None = None
) -> ExpertLoad:
    """Return counts `[layers, experts]` of an answer's rows, and the load of each layer.

    Args:
        found: a request, or a trajectory with each turn's new rows.
        turn: count only the rows of this sealed turn.
        policy: count only the rows of this policy version.

    Raises:
        BadRequest: there is no such turn, the turns are of different models, or there are
            more rows than one answer counts.
        CorruptRecord, RoutesExpired: see `reading.read_rows`.
    """
    if turn is not None and not 0 <= turn < len(found.items):
        msg = f"turn={turn}; {len(found.items)} turns are sealed, from 0"
        raise BadRequest(msg)
    items = dict(enumerate(found.items))
    if turn is not None:
        items = {turn: items[turn]}
    shapes = {_geometry(ready) for ready in items.values()}
    if len(shapes) != 1:
        msg = f"the turns come from models of different shapes: {sorted(shapes)}; ask for turn="
        raise BadRequest(msg)
    nbytes = sum(ready.nbytes for ready in items.values())
    if nbytes > MAX_COUNTED_BYTES:
        msg = f"{nbytes} bytes of routes; at most {MAX_COUNTED_BYTES} are counted: narrow tokens="
        raise BadRequest(msg)
    first = next(iter(items.values()))
    manifest = first.manifest
    experts = manifest.num_experts
    counts_LE = np.zeros((first.layers, experts), np.int64)
    rows = 0
    for number, ready in items.items():
        rows += await _count(found.rows(number), ready, policy, counts_LE)
    counts_LE = without_dense(counts_LE)
    return {
        "model": manifest.model,
        "topk": manifest.topk,
        "num_layers": manifest.num_layers,
        "num_experts": experts,
        "layer_start": first.layer_start,
        "turn": turn,
        "policy": policy,
        "rows": rows,
        "turns": [_turn(ready) for ready in found.items],
        "counts": counts_LE.tolist(),
        "layers": [
            LoadOfLayer(
                layer=layer,
                used=load.used,
                busiest=load.busiest,
                max_over_mean=load.max_over_mean,
                entropy=load.entropy,
            )
            for layer, load in enumerate(layer_loads(counts_LE), start=first.layer_start)
        ],
    }


async def _count(
    rows: AsyncIterator[Buffer], ready: Ready, policy: str | None, counts_LE: np.ndarray
) -> int:
    """Add the rows of one item to the counts; return how many were counted."""
    spans = _spans(ready, policy)
    at, counted = ready.token_start, 0
    async for buffer in rows:
        manifest = ready.manifest
        rows_TLK = read_rows(
            buffer, manifest.dtype, ready.layers, manifest.topk, manifest.num_experts
        )
        for start, stop in spans:
            asked = rows_TLK[max(start - at, 0) : max(stop - at, 0)]
            if len(asked):
                counts_LE += await asyncio.to_thread(expert_counts, asked, counts_LE.shape[1])
                counted += len(asked)
        at += len(rows_TLK)
    return counted


def _spans(ready: Ready, policy: str | None) -> list[tuple[int, int]]:
    """Return the tokens `[start, stop)` that a policy processed; all of them without one."""
    if policy is None:
        return [(ready.token_start, ready.token_start + ready.rows)]
    spans = ready.manifest.policy_versions
    return [(span.start, span.stop) for span in spans if span.version == policy]


def _geometry(ready: Ready) -> tuple[int, int, int, int]:
    return ready.layer_start, ready.layers, ready.manifest.topk, ready.manifest.num_experts


def _turn(ready: Ready) -> TurnOfLoad:
    manifest = ready.manifest
    return {
        "request_id": manifest.request_id,
        "choice": manifest.choice,
        "token_start": ready.token_start,
        "token_stop": ready.token_start + ready.rows,
        "policy_versions": sorted({span.version for span in manifest.policy_versions}),
    }
