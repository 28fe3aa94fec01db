"""What a comparison of recorded and live choice says, and when it says: stop.

Shape legend: A arrangements, G stretches of rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from routereplay.patches.replay.arrangements import ALIGNED, UNRELATED
from routereplay.patches.replay.errors import ReplayMisrouted
from routereplay.patches.replay.report import CanaryReading

MIN_CHOICES = 1600
"""Choices (rows times topk) below which nothing is judged: the standard error of a mean
overlap is at most 0.5 / 40 with so many, and MARGIN five times that of a difference."""

MARGIN = 0.1
"""Overlap by which another arrangement, or the recorded one against chance, must be ahead."""

TELLING = 0.7
"""Agreement of unrelated rows from which on rows are too much alike to tell whose they are."""

STRAYS = 0.1
"""Share of rows that are not their own from which on a comparison is not trusted."""


class Comparison(NamedTuple):
    """Sums of one comparison, on the host."""

    step: int
    layer_number: int
    topk: int
    names: tuple[str, ...]
    """`[A]`"""
    hits_AG: torch.Tensor
    """Recorded experts that the router chose too, int64."""
    rows_AG: torch.Tensor
    """Rows that were compared, int64."""
    strange_AG: torch.Tensor
    """Rows that share no expert with the router's choice, int64."""


def judged(comparison: Comparison) -> CanaryReading:
    """Return the reading, or raise `ReplayMisrouted` if it cannot be trusted."""
    names, topk = comparison.names, comparison.topk
    choices_AG = comparison.rows_AG.double() * topk
    share_AG = comparison.hits_AG / choices_AG.clamp(min=1)
    share_A = comparison.hits_AG.sum(1) / choices_AG.sum(1).clamp(min=1)
    whole = dict(zip(names, share_A.tolist(), strict=True))
    strays = _strays(comparison, share_A)
    stretches = [
        dict(zip(names, share, strict=True))
        for share, choices in zip(share_AG.t().tolist(), choices_AG.t().tolist(), strict=True)
        if min(choices) >= MIN_CHOICES
    ]
    reading = CanaryReading(
        step=comparison.step,
        layer_number=comparison.layer_number,
        rows=int(comparison.rows_AG[0].sum()),
        overlap=whole[ALIGNED],
        unrelated=whole[UNRELATED],
        others={name: whole[name] for name in names if name not in (ALIGNED, UNRELATED)},
        worst=min((stretch[ALIGNED] for stretch in stretches), default=whole[ALIGNED]),
        strays=strays,
        judged=float(choices_AG.sum(1).min()) >= MIN_CHOICES,
    )
    if reading.judged:
        for shares in (whole, *stretches):
            _check(reading, shares)
        _check_strays(reading, whole)
    return reading


def _strays(comparison: Comparison, share_A: torch.Tensor) -> float:
    """Return the share of rows that look like nobody's, estimated from those that share nothing.

    Were all rows alike, as many would share nothing as the mean overlap says; what is over
    that is compared with how often unrelated rows share nothing. With one expert a token, or
    so many that unrelated rows always share some, nothing can be told, and it is 0.
    """
    names, topk = comparison.names, comparison.topk
    strange_A = comparison.strange_AG.sum(1) / comparison.rows_AG.sum(1).clamp(min=1)
    aligned, unrelated = names.index(ALIGNED), names.index(UNRELATED)
    expected = (1.0 - float(share_A[aligned])) ** topk
    chance = float(strange_A[unrelated])
    if chance < STRAYS:
        return 0.0
    return max(float(strange_A[aligned]) - expected, 0.0) / chance


def _check_strays(reading: CanaryReading, shares: dict[str, float]) -> None:
    """Raise if a part of the rows are not their own, however well the others agree."""
    if reading.strays < STRAYS:
        return
    msg = (
        f"layer {reading.layer_number} (1-based), step {reading.step}: about "
        f"{reading.strays:.0%} of the rows execute experts that are not theirs: the router itself "
        f"chooses none of them, though {reading.overlap:.0%} over all rows. Some trajectories, "
        "turns or context-parallel rows are mixed up, or were sampled with other weights; "
        "canary_every=0 replays foreign routes on purpose"
    )
    raise ReplayMisrouted(
        msg,
        layer_number=reading.layer_number,
        overlap=reading.overlap,
        arrangements=dict(shares),
    )


def _check(reading: CanaryReading, shares: dict[str, float]) -> None:
    """Raise if the recorded arrangement is not the one that explains the router's choice."""
    aligned = shares[ALIGNED]
    others = {name: share for name, share in shares.items() if name != ALIGNED}
    best = max(others, key=lambda name: others[name])
    if others[best] > aligned + MARGIN:
        why = f"but {others[best]:.0%} under another arrangement: {best}"
    elif aligned - MARGIN < shares[UNRELATED] < TELLING:
        why = (
            f"and {shares[UNRELATED]:.0%} for unrelated rows: chance. The rows are those of "
            "other trajectories or of another context-parallel rank, the layers are mixed up, "
            "or the engine sampled with other weights"
        )
    else:
        return
    where = "" if aligned == reading.overlap else f", {reading.overlap:.0%} over all rows"
    msg = (
        f"layer {reading.layer_number} (1-based), step {reading.step}: the router itself chooses "
        f"{aligned:.0%} of the experts that it is made to replay{where}, {why}. Check row_ids "
        "and the layers of the routes; canary_every=0 replays foreign routes on purpose"
    )
    raise ReplayMisrouted(
        msg, layer_number=reading.layer_number, overlap=aligned, arrangements=dict(shares)
    )
