"""How far two engines are apart: log-probs of the same tokens, and the experts they chose.

numpy only. The formulas of the log-prob metrics are those by which ART gates its
train-inference mismatch (OpenPipe/ART, tests/integration/megatron/train_inf_mismatch),
so figures can be compared. Candidate is Megatron, target is vLLM.

Shape legend: N tokens, M of the top log-probs (20 in the gates), T rows, L layers, K topk.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_TINY = 1e-18
"""ART's guard against a target of all zeros."""


class TopLogprobs(NamedTuple):
    """The most probable tokens at each position, most probable first."""

    ids: np.ndarray
    """`[N, M]` token ids, distinct in a row."""
    logprobs: np.ndarray
    """`[N, M]` log-probs over the whole vocabulary."""


class RouteMismatch(NamedTuple):
    """How often two recordings of the same tokens chose different *sets* of experts."""

    rows: float
    """Share of rows with at least one layer whose sets differ."""
    per_layer: np.ndarray
    """`[L]` share of rows whose sets differ in that layer; 0 for dense planes."""
    choices: float
    """Share of single choices that the target did not make, over layers and rows."""


def mean_abs_pct(candidate: np.ndarray, target: np.ndarray) -> float:
    """Return `100 * mean(|c - r|) / (mean(|r|) + 1e-18)`, in percent.

    A ratio of means, not a mean of ratios: a token of log-prob near 0 cannot blow it up.
    """
    candidate, target = _pair(candidate, target)
    return 100.0 * float(np.abs(candidate - target).mean() / (np.abs(target).mean() + _TINY))


def mean_abs_error(candidate: np.ndarray, target: np.ndarray) -> float:
    """Return `mean(|c - r|)`, in nats."""
    candidate, target = _pair(candidate, target)
    return float(np.abs(candidate - target).mean())


def top1_agreement(candidate: TopLogprobs, target: TopLogprobs) -> float:
    """Return the share of positions at which both have the same most probable token."""
    _check_top(candidate, target)
    return float((candidate.ids[:, 0] == target.ids[:, 0]).mean())


def top_overlap(candidate: TopLogprobs, target: TopLogprobs) -> float:
    """Return `mean_t |C ∩ R| / M`, the shared part of the top M sets."""
    _check_top(candidate, target)
    return float(_same_ids(candidate, target).sum(axis=(1, 2)).mean() / candidate.ids.shape[1])


def top_kl(candidate: TopLogprobs, target: TopLogprobs) -> float:
    """Return the mean KL(candidate || target) over the tokens that both have in their top M.

    At each position both are renormalised over the intersection I of the two sets, then
    `sum_{i in I} p(i) * (log p(i) - log q(i))`; positions with an empty I are left out,
    and NaN is returned if all are. Mass outside of I is dropped, so a low overlap
    under-reports: read it beside `top_overlap`.
    """
    _check_top(candidate, target)
    same = _same_ids(candidate, target)
    shared = np.logical_or.reduce(same, axis=2)
    kept = np.logical_or.reduce(shared, axis=1)
    if not kept.any():
        return float("nan")
    aligned = np.einsum("ncr,nr->nc", same, target.logprobs.astype(np.float64))
    log_p = _renormalise(candidate.logprobs.astype(np.float64), shared)[kept]
    log_q = _renormalise(aligned, shared)[kept]
    with np.errstate(invalid="ignore"):
        terms = np.exp(log_p) * (log_p - log_q)
    return float(np.where(shared[kept], terms, 0.0).sum(axis=1).mean())


def route_mismatch(candidate: np.ndarray, target: np.ndarray) -> RouteMismatch:
    """Compare two `[T, L, K]` arrays of experts as sets; the order in a row means nothing.

    Raises:
        ValueError: other shapes, or no row.
    """
    if candidate.shape != target.shape or candidate.ndim != 3 or not candidate.size:
        msg = f"routes of shapes {candidate.shape} and {target.shape}; expected one [T, L, K]"
        raise ValueError(msg)
    differ_TL = (np.sort(candidate, axis=2) != np.sort(target, axis=2)).any(axis=2)
    missed_TLK = ~(candidate[..., :, None] == target[..., None, :]).any(axis=3)
    return RouteMismatch(
        rows=float(differ_TL.any(axis=1).mean()),
        per_layer=differ_TL.mean(axis=0),
        choices=float(missed_TLK.mean()),
    )


def _pair(candidate: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if candidate.shape != target.shape or candidate.ndim != 1 or not candidate.size:
        msg = f"log-probs of shapes {candidate.shape} and {target.shape}; expected one [N], N > 0"
        raise ValueError(msg)
    return candidate.astype(np.float64), target.astype(np.float64)


def _check_top(candidate: TopLogprobs, target: TopLogprobs) -> None:
    shapes = {array.shape for array in (*candidate, *target)}
    if len(shapes) != 1 or candidate.ids.ndim != 2 or not candidate.ids.size:
        msg = f"top log-probs of shapes {sorted(shapes)}; expected one [N, M], N and M > 0"
        raise ValueError(msg)


def _same_ids(candidate: TopLogprobs, target: TopLogprobs) -> np.ndarray:
    """`[N, M, M]`: whether candidate's token c is target's token r."""
    return candidate.ids[:, :, None] == target.ids[:, None, :]


def _renormalise(logprobs: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Return log-probs that sum to 1 over `shared`, -inf elsewhere."""
    masked = np.where(shared, logprobs, -np.inf)
    top = masked.max(axis=1, keepdims=True)
    # Rows with nothing shared are dropped by the caller; keep them finite on the way.
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.exp(masked - top).sum(axis=1, keepdims=True)
    return masked - top - np.log(np.where(total > 0, total, 1.0))
