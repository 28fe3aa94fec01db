"""The end of a step: was every route executed exactly as often as it must be?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from routereplay.patches.replay.chunk import ChunkReplay
from routereplay.patches.replay.errors import ReplayIncomplete
from routereplay.patches.replay.origins import RouteOrigins
from routereplay.patches.replay.report import RowCounts, StepReport


def finish(chunks: Sequence[ChunkReplay[Any]]) -> StepReport:
    """Return what a step executed.

    Raises:
        ReplayIncomplete: with everything that is missing or left over.
        ReplayMisrouted: a canary that is due found rows that execute others' experts.
    """
    counts = [chunk.opened for chunk in chunks]
    found = [finding for chunk in chunks for finding in chunk.findings()]
    if not all(counts):
        found.append(f"microbatches begun by each model chunk: {counts}; none may be 0")
    elif len(set(counts)) > 1:
        found.append(f"the model chunks began {counts} microbatches; they must be as many")
    if found:
        raise incomplete(found)
    layers = [layer for chunk in chunks for layer in chunk.layers]
    rows = ((chunk.rows(), chunk.origins) for chunk in chunks if chunk.layers)
    counted, origins = next(rows, (RowCounts(0, 0, 0), RouteOrigins()))
    return StepReport(
        microbatches=counts[0],
        router_calls=sum(layer.calls for layer in layers),
        recomputes=sum(layer.recomputes for layer in layers),
        rows=counted,
        origins=origins,
        prefetched=sum(chunk.prefetched for chunk in chunks),
        canary=tuple(reading for chunk in chunks for reading in chunk.canary.judge()),
    )


def incomplete(findings: list[str]) -> ReplayIncomplete:
    """Return the error that lists `findings`."""
    listed = "".join(f"\n  - {finding}" for finding in findings)
    msg = f"the step did not execute its routes as recorded:{listed}"
    return ReplayIncomplete(msg, findings=findings)
