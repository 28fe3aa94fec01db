"""The ways in which rows of recorded experts can lie, the right one and the known wrong ones.

Shape legend: T rows of a router, K topk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from routereplay.patches.replay.staging import Microbatch

ALIGNED, UNRELATED = "as recorded", "unrelated rows"


class Arrangement(NamedTuple):
    """Recorded experts, dealt to the rows in one way."""

    name: str
    ids_TK: torch.Tensor
    counts_T: torch.Tensor
    """Bool: rows whose comparison means something."""


def arrangements(microbatch: Microbatch, slot: int) -> list[Arrangement]:
    """Return plane `slot` as it is replayed, then as known bugs would have it."""
    ids_TK = microbatch.ids_LTK[slot]
    recorded_T = ~(microbatch.live_T | microbatch.padding_T)
    outer, inner = microbatch.input_shape
    # Rows from a token to the next of its sequence, and the sequence's length.
    apart, length = (1, inner) if microbatch.batch_first else (inner, outer)
    found = [
        Arrangement(ALIGNED, ids_TK, recorded_T),
        _scattered(ids_TK, recorded_T),
        *(
            _shifted(ids_TK, recorded_T, rows * apart, name)
            for rows, name in ((1, "rows one late"), (-1, "rows one early"))
            if length > 1
        ),
    ]
    for other, name in ((slot - 1, "previous MoE layer"), (slot + 1, "next MoE layer")):
        if 0 <= other < len(microbatch.ids_LTK):
            found.append(Arrangement(name, microbatch.ids_LTK[other], recorded_T))
    if outer > 1 and inner > 1:
        name = "position-major rows" if microbatch.batch_first else "batch-major rows"
        found.append(_transposed(ids_TK, recorded_T, outer, inner, name))
    return found


def _shifted(ids_TK: torch.Tensor, counts_T: torch.Tensor, by: int, name: str) -> Arrangement:
    # What wraps around the end belongs to no neighbour.
    inside_T = torch.ones_like(counts_T)
    inside_T[slice(-by, None) if by > 0 else slice(-by)].fill_(False)
    return Arrangement(name, ids_TK.roll(-by, 0), counts_T & counts_T.roll(-by, 0) & inside_T)


def _transposed(
    ids_TK: torch.Tensor, counts_T: torch.Tensor, outer: int, inner: int, name: str
) -> Arrangement:
    topk = ids_TK.shape[1]
    ids = ids_TK.reshape(inner, outer, topk).transpose(0, 1).reshape(-1, topk)
    counts = counts_T.view(inner, outer).t().reshape(-1)
    return Arrangement(name, ids, counts & counts_T)


def _scattered(ids_TK: torch.Tensor, counts_T: torch.Tensor) -> Arrangement:
    """Pair each row with one far away, in golden-ratio strides: what chance gives.

    No random numbers: drawing them would move the training run's own. No fixed distance
    either: equal prompts lie at equal distances in a batch.
    """
    rows = len(ids_TK)
    steps = torch.arange(rows, device=ids_TK.device)
    other_T = (steps * max(int(rows * 0.618), 1) + steps // 2) % rows
    return Arrangement(
        UNRELATED, ids_TK.index_select(0, other_T), counts_T & counts_T.index_select(0, other_T)
    )
