"""Changes of rows `[rows, L, K]` that more than one station suffers. Each returns a copy."""

from __future__ import annotations

import numpy as np

from mutants.world import EXPERTS


def zeroed(rows: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows all zero."""
    rows = rows.copy()
    rows[:count] = 0
    return rows


def stale(rows: np.ndarray) -> np.ndarray:
    """The middle third of the rows another row of the same batch."""
    rows = rows.copy()
    rows[len(rows) // 3 : 2 * len(rows) // 3] = rows[0]
    return rows


def twice(rows: np.ndarray) -> np.ndarray:
    """One row that names an expert twice, in one layer."""
    rows = rows.copy()
    rows[len(rows) // 2, 1, 1] = rows[len(rows) // 2, 1, 0]
    return rows


def drafted(rows: np.ndarray) -> np.ndarray:
    """One layer another model's choices."""
    other = np.random.default_rng(1).random((len(rows), EXPERTS)).argsort(-1)
    rows = rows.copy()
    rows[:, 2] = other[:, : rows.shape[2]]
    return rows


def older(rows: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows those of a policy that chose otherwise; layer 0 is dense."""
    other = np.random.default_rng(2).random((count, rows.shape[1], EXPERTS)).argsort(-1)
    rows = rows.copy()
    rows[:count, 1:] = other[:, 1:, : rows.shape[2]]
    return rows


def repeated(rows: np.ndarray) -> np.ndarray:
    """Every row the first one."""
    return np.repeat(rows[:1], len(rows), 0)
