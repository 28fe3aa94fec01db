"""Lay trajectories out as packed rows of one length, and take scores back out of them.

Shape legend: N tokens of all trajectories one after the other, T tokens of a packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from routereplay.client import ModelShape, PackedRoutes, Trajectory, pack_thd


@dataclass(frozen=True, eq=False, slots=True)
class PackedRow:
    """One row, as every rank gets it."""

    token_ids: np.ndarray
    """`[T]` int64, zeros in padding."""
    cu_seqlens: np.ndarray
    """`[B + 1]` int64, where the sequences lie; padding belongs to the last."""
    flat: np.ndarray
    """`[T]` int64: which of the N tokens each is, -1 for padding."""
    routes: PackedRoutes | None
    """None for a model that routes nothing."""


def lay_out(lengths: Sequence[int], row_tokens: int, *, together: bool = True) -> list[list[int]]:
    """Return which sequences share a row of `row_tokens`, in order; one at least in each.

    Args:
        together: several in a row; else each has a row of its own.

    Raises:
        ValueError: a sequence is longer than a row.
    """
    if max(lengths) > row_tokens:
        msg = f"a trajectory of {max(lengths)} tokens does not fit a row of {row_tokens}"
        raise ValueError(msg)
    rows: list[list[int]] = [[]]
    left = row_tokens
    for index, length in enumerate(lengths):
        if length > left or (rows[-1] and not together):
            rows.append([])
            left = row_tokens
        rows[-1].append(index)
        left -= length
    return rows


def pack_rows(
    trajectories: Sequence[Trajectory],
    token_ids: Sequence[np.ndarray],
    trained: Sequence[np.ndarray],
    model: ModelShape | None,
    row_tokens: int,
    *,
    backwards: bool = False,
    together: bool = True,
) -> list[PackedRow]:
    """Pack trajectories with their routes into rows of `row_tokens`.

    Args:
        trajectories: the routes; not looked at without a `model`.
        token_ids: for each its `[tokens]`.
        trained: for each the positions that were sampled; each must have been recorded so.
        model: the shape of its routes; None if it routes nothing.
        backwards: the last trajectory first, so that each has other neighbours.
        together: several trajectories in a row. A layer that carries a state from token to
            token would carry it from one to the next.

    Raises:
        MisalignedRoutes, MissingRoutes, InvalidRoutes: the routes do not fit the tokens.
    """
    lengths = [len(tokens) for tokens in token_ids]
    starts = np.cumsum([0, *lengths])
    order = list(range(len(lengths)))[:: -1 if backwards else 1]
    layout = lay_out([lengths[index] for index in order], row_tokens, together=together)
    rows = []
    for places in layout:
        members = [order[place] for place in places]
        bounds = np.cumsum([0, *(lengths[index] for index in members)])
        padded = np.append(bounds[:-1], row_tokens)
        row = np.zeros(row_tokens, np.int64)
        flat = np.full(row_tokens, -1, np.int64)
        mask = np.zeros(row_tokens, bool)
        for index, start in zip(members, bounds, strict=False):
            span = slice(start, start + lengths[index])
            row[span] = token_ids[index]
            flat[span] = np.arange(starts[index], starts[index + 1])
            mask[start + trained[index]] = True
        routes = None
        if model is not None:
            routes = pack_thd(
                [trajectories[index] for index in members],
                row,
                cu_seqlens=bounds,
                cu_seqlens_padded=padded,
                model=model,
                loss_mask=mask,
            )
        rows.append(PackedRow(row, padded, flat, routes))
    return rows
