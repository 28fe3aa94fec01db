"""What a finished step tells its trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from routereplay.patches.replay.origins import RouteOrigins


class RowCounts(NamedTuple):
    """Rows that the routers of this rank saw, summed over the microbatches of a step.

    Each router of a model chunk sees every row once; layers are not multiplied in.
    """

    replayed: int
    """Executed recorded experts."""
    live: int
    """Real tokens without a route: the router decided."""
    padding: int
    """No real token: executed balanced experts."""


@dataclass(frozen=True, slots=True)
class CanaryReading:
    """How well recorded experts agree with what one router would have chosen itself."""

    step: int
    """Which step of this replay was looked at, from 1."""
    layer_number: int
    """1-based."""
    rows: int
    """Recorded rows that were compared."""
    overlap: float
    """Mean share of a row's K recorded experts that the router chose too. About 0.9 when
    rows are aligned and engine and trainer hold the same weights."""
    unrelated: float
    """The same against rows that have nothing to do with each other: what chance gives."""
    others: Mapping[str, float]
    """The same under each arrangement that a bug could have made of the rows."""
    worst: float
    """The lowest `overlap` of the stretches of rows that were judged one by one."""
    strays: float = 0.0
    """Estimated share of rows whose recorded experts are not theirs; 0 where K or E is too
    small to tell."""
    judged: bool = True
    """Whether there were rows enough to judge; with fewer this is for information."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a finished step executed on this rank."""

    microbatches: int
    """Of each model chunk."""
    router_calls: int
    """Over all layers, recomputes not counted."""
    recomputes: int
    rows: RowCounts
    """Of each model chunk; all zero on a rank without MoE layers."""
    origins: RouteOrigins
    """Of the same rows: how many routes were lost, and which policies routed the others."""
    prefetched: int
    """Microbatches that `prefetch()` had staged, over all model chunks."""
    canary: tuple[CanaryReading, ...]
    """Comparisons of this step: of every layer until all were judged, of one later."""
