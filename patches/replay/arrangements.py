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
    length, batch = microbatch.input_shape
    found = [
        Arrangement(ALIGNED, ids_TK, recorded_T),
        _scattered(ids_TK, recorded_T),
        *(
            _shifted(ids_TK, recorded_T, rows * batch, name)
            for rows, name in ((1, "rows one late"), (-1, "rows one early"))
            if length > 1
        ),
    ]
    for other, name in ((slot - 1, "previous MoE layer"), (slot + 1, "next MoE layer")):
        if 0 <= other < len(microbatch.ids_LTK):
            found.append(Arrangement(name, microbatch.ids_LTK[other], recorded_T))
    if batch > 1 and length > 1:
        found.append(_transposed(ids_TK, recorded_T, length, batch))
    return found


def _shifted(ids_TK: torch.Tensor, counts_T: torch.Tensor, by: int, name: str) -> Arrangement:
    # What wraps around the end belongs to no neighbour.
    inside_T = torch.ones_like(counts_T)
    inside_T[slice(-by, None) if by > 0 else slice(-by)].fill_(False)
    return Arrangement(name, ids_TK.roll(-by, 0), counts_T & counts_T.roll(-by, 0) & inside_T)


def _transposed(
    ids_TK: torch.Tensor, counts_T: torch.Tensor, length: int, batch: int
) -> Arrangement:
    topk = ids_TK.shape[1]
    ids = ids_TK.reshape(batch, length, topk).transpose(0, 1).reshape(-1, topk)
    counts = counts_T.view(batch, length).t().reshape(-1)
    return Arrangement("batch-major rows", ids, counts & counts_T)


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
