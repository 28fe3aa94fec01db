"""Rows of a batch: which a router sees, copying them on the host, proving them sound.

Shape legend: N rows of the packed batch, T of this rank, L layers, K topk.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch

from routereplay.patches.replay.errors import ReplayMismatch

_MIN_RUN = 8
"""Rows in a mean run from which on a copy for each run beats one gather of all rows."""


class RouterRows(NamedTuple):
    """The rows of one microbatch in the order in which a router flattens its input."""

    rows: torch.Tensor
    """`[T]` int64: flat row of the packed batch for each row of the router."""

    input_shape: tuple[int, int]
    """The leading sizes of the hidden states that reach the router; their product is T."""

    batch_first: bool = False
    """Whether `input_shape` is `(b, s)`; else `(s, b)`, as in Megatron-Core."""


def check_row_ids(row_ids_BS: torch.Tensor) -> None:
    """Raise `ReplayMismatch` unless these are integers of two dimensions, like input_ids."""
    if row_ids_BS.dim() != 2 or row_ids_BS.is_floating_point() or row_ids_BS.dtype == torch.bool:
        msg = (
            f"row_ids have shape {tuple(row_ids_BS.shape)} and dtype {row_ids_BS.dtype}; expected "
            "integers [b, s_local], shaped like input_ids on this rank (b = 1 for packed rows)"
        )
        raise ReplayMismatch(msg)


def copy_rows(source: np.ndarray, rows_T: np.ndarray | None, out: np.ndarray) -> None:
    """Write `source[rows_T]` to `out` (all rows if None).

    Packed rows of a rank come in long runs, two for each sequence under context
    parallelism, and a run is a plain copy: twice as fast as a gather.
    `rows_T` must be in range; nothing is checked again here.
    """
    if rows_T is None:
        np.copyto(out, source)
        return
    starts = np.flatnonzero(np.diff(rows_T, prepend=np.int64(-2)) != 1)
    if len(starts) * _MIN_RUN > len(rows_T):
        # mode="clip" because the default fills a second buffer before it writes `out`.
        np.take(source, rows_T, axis=0, out=out, mode="clip")
        return
    for start, stop in itertools.pairwise([*starts.tolist(), len(rows_T)]):
        first = int(rows_T[start])
        np.copyto(out[start:stop], source[first : first + stop - start])


def audit(
    ids_TLK: torch.Tensor,
    live_T: torch.Tensor,
    padding_T: torch.Tensor,
    num_experts: int,
) -> torch.Tensor:
    """Return `[3]` int64: bad rows of recorded ids, live rows, padding rows.

    A row is bad once for each layer where an id repeats or is out of range: a repeated
    id routes a token to fewer experts, in silence on Megatron-Core 0.16 (verl issue
    4986). Ids under a live row are never executed and not counted. Routes from
    `pack_thd` were checked for repeated ids already; this holds for routes from
    anywhere, and for what the copy brought.
    """
    topk = ids_TLK.shape[-1]
    bad_TLK = torch.zeros_like(ids_TLK, dtype=torch.bool)
    if num_experts <= torch.iinfo(ids_TLK.dtype).max:
        bad_TLK |= ids_TLK >= num_experts
    if ids_TLK.dtype.is_signed:
        bad_TLK |= ids_TLK < 0
    # Turned by 1 to K/2 places, every id meets every other: no sort, K/2 comparisons.
    for places in range(1, topk // 2 + 1):
        bad_TLK |= ids_TLK == ids_TLK.roll(places, dims=-1)
    bad_TL = bad_TLK.any(-1) & ~live_T.unsqueeze(1)
    return torch.stack([bad_TL.sum(), live_T.sum(), padding_T.sum()])
