"""The ways in which rows of recorded experts can lie, the right one and the known wrong ones.

Shape legend: A arrangements, T rows of a router, L layers, K topk.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from routereplay.patches.replay.microbatch import Microbatch

ALIGNED, UNRELATED = "as recorded", "unrelated rows"


class Arrangements(NamedTuple):
    """The recorded experts of one router, dealt to its rows in each way."""

    names: tuple[str, ...]
    ids_ATK: torch.Tensor
    counts_AT: torch.Tensor
    """Bool: rows whose comparison means something."""


class Arranger:
    """Deals recorded experts to rows. Keeps the last deals: microbatches often have one shape."""

    def __init__(self) -> None:
        self._deal = lru_cache(maxsize=4)(_deal)

    def arrange(self, microbatch: Microbatch, slot: int) -> Arrangements:
        """Return plane `slot` as it is replayed, then as known bugs would have it."""
        deal = self._deal(
            microbatch.input_shape,
            microbatch.batch_first,
            slot > 0,
            slot + 1 < len(microbatch.ids_LTK),
            microbatch.ids_LTK.device,
        )
        recorded_T = ~(microbatch.live_T | microbatch.padding_T)
        return Arrangements(
            deal.names,
            microbatch.ids_LTK[deal.planes_A1 + slot, deal.rows_AT],
            recorded_T[deal.rows_AT] & recorded_T & deal.inside_AT,
        )


class _Deal(NamedTuple):
    """Where each row takes its experts from."""

    names: tuple[str, ...]
    planes_A1: torch.Tensor
    """Int64: planes behind (or before) the router's own."""
    rows_AT: torch.Tensor
    """Int64."""
    inside_AT: torch.Tensor
    """Bool: what wraps around the end belongs to no neighbour."""


def _deal(
    input_shape: tuple[int, int],
    batch_first: bool,
    has_previous: bool,
    has_next: bool,
    device: torch.device,
) -> _Deal:
    """Return the deal of one shape of microbatch, made on the device: no copy is waited for."""
    outer, inner = input_shape
    # Rows from a token to the next of its sequence, and the sequence's length.
    apart, length = (1, inner) if batch_first else (inner, outer)
    own_T = torch.arange(outer * inner, device=device)
    dealt = {ALIGNED: own_T, UNRELATED: _scattered(own_T)}
    if length > 1:
        dealt["rows one late"] = own_T + apart
        dealt["rows one early"] = own_T - apart
    planes = {"previous MoE layer": -1} if has_previous else {}
    if has_next:
        planes["next MoE layer"] = 1
    dealt |= dict.fromkeys(planes, own_T)
    if outer > 1 and inner > 1:
        name = "position-major rows" if batch_first else "batch-major rows"
        dealt[name] = own_T.view(inner, outer).t().reshape(-1)
    rows_AT = torch.stack(list(dealt.values()))
    wrapped_AT = rows_AT.remainder(max(len(own_T), 1))
    planes_A1 = torch.zeros(len(dealt), 1, dtype=torch.int64, device=device)
    for index, name in enumerate(dealt):
        planes_A1[index].fill_(planes.get(name, 0))
    return _Deal(tuple(dealt), planes_A1, wrapped_AT, rows_AT == wrapped_AT)


def _scattered(own_T: torch.Tensor) -> torch.Tensor:
    """Pair each row with one far away, in golden-ratio strides: what chance gives.

    No random numbers: drawing them would move the training run's own. No fixed distance
    either: equal prompts lie at equal distances in a batch.
    """
    rows = len(own_T)
    return (own_T * max(int(rows * 0.618), 1) + own_T // 2) % max(rows, 1)
