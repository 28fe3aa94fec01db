"""Which rows of a packed batch this rank's routers see, and in which order.

Shape legend: B sequences of the microbatch, S tokens of each on this context rank.

A trainer packs and slices in its own way, so nothing is derived here that it already
knows: it pushes an arange of flat row indices through its own packing and
context-parallel code and hands over what comes out. Two things happen to tokens after
that, both inside Megatron-Core, and both are repeated here: the embedding transposes
`[B, S]` to `[S, B]`, then sequence parallelism scatters along S
(`models/common/embeddings/language_model_embedding.py`).
"""

from __future__ import annotations

import itertools

import torch

from routereplay.patches.replay.errors import ReplayMismatch
from routereplay.patches.replay.rows import RouterRows, check_row_ids


def router_rows(row_ids_BS: torch.Tensor, *, sp_size: int = 1, sp_rank: int = 0) -> RouterRows:
    """Return the rows of a router from the row ids of the trainer's `input_ids`.

    Args:
        row_ids_BS: integers shaped like `input_ids` on this rank: after packing and
            context-parallel slicing, before the transpose and the scatter.
        sp_size: tensor-parallel size if sequence parallelism is on, else 1.
        sp_rank: this rank among them.

    Raises:
        ReplayMismatch: not an integer `[B, S]`, or S does not divide by `sp_size`.
    """
    check_row_ids(row_ids_BS)
    batch, length = row_ids_BS.shape
    if length % sp_size:
        msg = (
            f"{length} tokens of this rank do not divide by the {sp_size} ranks of sequence "
            "parallelism; pad the batch to a multiple, as Megatron-Core itself requires"
        )
        raise ReplayMismatch(msg, tokens=length, sp_size=sp_size)
    rows_SB = row_ids_BS.t().chunk(sp_size, dim=0)[sp_rank]
    return RouterRows(rows_SB.reshape(-1).long(), (length // sp_size, batch))


def context_parallel_rows_padded(
    batch: int, length: int, *, cp_size: int, cp_rank: int
) -> torch.Tensor:
    """Return the row ids `[batch, length / cp_size]` of a padded batch on one context rank.

    The zigzag of `get_batch_on_this_cp_rank` (megatron/core/utils.py): each row is cut
    into `2 * cp_size` pieces and rank r takes pieces r and `2 * cp_size - 1 - r`.

    Raises:
        ReplayMismatch: `length` does not divide by `2 * cp_size`.
    """
    rows = torch.arange(batch * length).view(batch, length)
    return _zigzag(rows, cp_size, cp_rank)


def context_parallel_rows_thd(
    cu_seqlens_padded: torch.Tensor, *, cp_size: int, cp_rank: int
) -> torch.Tensor:
    """Return the row ids `[1, tokens / cp_size]` of packed sequences on one context rank.

    The zigzag per sequence of `get_thd_batch_on_this_cp_rank`, that is of Transformer
    Engine's `thd_get_partitioned_indices`.

    Args:
        cu_seqlens_padded: `[sequences + 1]` integers, the padded bounds of each sequence.

    Raises:
        ReplayMismatch: a padded sequence does not divide by `2 * cp_size`.
    """
    bounds = cu_seqlens_padded.tolist()
    pieces = [
        _zigzag(torch.arange(start, stop).view(1, -1), cp_size, cp_rank)
        for start, stop in itertools.pairwise(bounds)
    ]
    return torch.cat(pieces, dim=1) if pieces else torch.empty(1, 0, dtype=torch.long)


def _zigzag(rows_BS: torch.Tensor, cp_size: int, cp_rank: int) -> torch.Tensor:
    if cp_size == 1:
        return rows_BS
    length = rows_BS.shape[1]
    if length % (2 * cp_size):
        msg = (
            f"a sequence of {length} tokens does not divide by {2 * cp_size}, twice the "
            "context-parallel size; pad it"
        )
        raise ReplayMismatch(msg, tokens=length, cp_size=cp_size)
    pieces = rows_BS.chunk(2 * cp_size, dim=1)
    return torch.cat([pieces[cp_rank], pieces[2 * cp_size - 1 - cp_rank]], dim=1)
