"""How tokens fall on experts: counts of a block of routes, and how even they are.

Shape legend: T tokens, L layers, K topk, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class LayerLoad(NamedTuple):
    """How the choices of one layer fall on its experts."""

    used: int
    """Experts with at least one choice; 0 for a dense layer."""
    busiest: int
    """The expert with the most choices."""
    max_over_mean: float
    """Choices of the busiest expert over the mean of all; 1 is even, E over topk the worst."""
    entropy: float
    """Entropy of the choices over log E; 1 is even, 0 is one expert for all."""


def expert_counts(rows_TLK: np.ndarray, num_experts: int) -> np.ndarray:
    """Return `[layers, experts]` int64: how often each layer names each expert."""
    counts = [
        np.bincount(rows_TLK[:, layer].reshape(-1), minlength=num_experts)
        for layer in range(rows_TLK.shape[1])
    ]
    return np.array(counts, np.int64).reshape(-1, num_experts)


def without_dense(counts_LE: np.ndarray) -> np.ndarray:
    """Return counts in which dense layers count zero.

    They are all-zero planes in the routes, and their "expert 0" is nobody's. Told of a whole
    record: few rows of a top-1 layer may name expert 0 alone.
    """
    dense_L = counts_LE[:, 0] == counts_LE.sum(1)
    return np.where(dense_L[:, None], 0, counts_LE)


def layer_loads(counts_LE: np.ndarray) -> list[LayerLoad]:
    """Return the load of each layer of `[layers, experts]` counts."""
    return [_load(counts_E) for counts_E in counts_LE]


def _load(counts_E: np.ndarray) -> LayerLoad:
    total = int(counts_E.sum())
    if total == 0:
        return LayerLoad(0, 0, 0.0, 0.0)
    chosen = counts_E[counts_E > 0]
    share = chosen / total
    experts = len(counts_E)
    entropy = float(-(share * np.log(share)).sum() / np.log(experts)) if experts > 1 else 0.0
    busiest = int(counts_E.argmax())
    return LayerLoad(len(chosen), busiest, float(counts_E[busiest] * experts / total), entropy)
