"""What the routers executed in a step, kept to be replayed (R2: the trainer's own routes).

A pass for log-probs routes live and is recorded; the updates that follow replay it. So
they train on the experts under which the old log-probs were computed, although the
router has moved. What was replayed in the recorded step is recorded as it was replayed.

Shape legend: N rows of the packed batch, T rows of this rank's routers, L MoE layers of
the chunk, K topk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from routereplay.client.packed import PackedRoutes
from routereplay.patches.replay.errors import ReplayStateError


class ChunkRecording:
    """The executed experts of one model chunk, microbatch by microbatch."""

    def __init__(self, layer_idxs: Sequence[int]) -> None:
        self._layer_idxs = layer_idxs
        self._microbatches: list[_Recorded] = []

    def begin(self, packed: PackedRoutes, rows_T: torch.Tensor) -> None:
        """Open the next microbatch: `rows_T` of `packed`, in the order of the routers."""
        self._microbatches.append(_Recorded(packed, rows_T, len(self._layer_idxs)))

    def put(self, slot: int, ids_TK: torch.Tensor) -> None:
        """Keep what router `slot` executes in the open microbatch; in the narrow dtype."""
        self._microbatches[-1].ids_LTK[slot] = ids_TK

    def __len__(self) -> int:
        return len(self._microbatches)

    def packed(self, index: int) -> PackedRoutes:
        """Return microbatch `index` as routes; the first time, waits for the device."""
        return self._microbatches[index].packed(self._layer_idxs)


class Recording:
    """The routes that a step executed on this rank. Made by `step(record=True)`."""

    def __init__(self, chunks: Sequence[ChunkRecording]) -> None:
        self._chunks = tuple(chunks)

    def __len__(self) -> int:
        return max(len(chunk) for chunk in self._chunks)

    def packed(self, microbatch: int, *, vp_stage: int | None = None) -> PackedRoutes:
        """Return the routes of a microbatch, ready for `begin_microbatch` with its row ids.

        Layers are those of the chunk; rows that other ranks executed hold no expert and
        are refused if they are replayed here.

        Args:
            microbatch: 0-based, in the order in which the step began them.
            vp_stage: index of the model chunk, as for `begin_microbatch`.

        Raises:
            IndexError: the step had no such microbatch, or the model no such chunk.
            ReplayStateError: several chunks, and `vp_stage` does not say which.
        """
        if vp_stage is None and len(self._chunks) > 1:
            msg = f"{len(self._chunks)} model chunks were recorded; vp_stage says which is meant"
            raise ReplayStateError(msg)
        return self._chunks[vp_stage or 0].packed(microbatch)


class _Recorded:
    """One microbatch."""

    def __init__(self, packed: PackedRoutes, rows_T: torch.Tensor, layers: int) -> None:
        self.ids_LTK: list[torch.Tensor | None] = [None] * layers
        self._given = packed
        self._rows_T = rows_T
        self._packed: PackedRoutes | None = None

    def packed(self, layer_idxs: Sequence[int]) -> PackedRoutes:
        if self._packed is None:
            self._packed = self._build(layer_idxs)
            self.ids_LTK = []
        return self._packed

    def _build(self, layer_idxs: Sequence[int]) -> PackedRoutes:
        given, planes = self._given, [ids for ids in self.ids_LTK if ids is not None]
        if not planes or len(planes) < len(layer_idxs):
            msg = "a microbatch was begun and not executed by every router; nothing was recorded"
            raise ReplayStateError(msg)
        rows = self._rows_T.cpu().numpy()
        first, layers = min(layer_idxs), max(layer_idxs) - min(layer_idxs) + 1
        # An id that no model has: replayed by mistake, such a row is counted as a fault.
        dtype = np.uint8 if given.num_experts <= np.iinfo(np.uint8).max else np.uint16
        shape = (given.num_tokens, layers, planes[0].shape[1])
        experts_NLK = np.full(shape, given.num_experts, dtype)
        experts_NLK[rows] = 0
        for layer_idx, plane_TK in zip(layer_idxs, torch.stack(planes).cpu().numpy(), strict=True):
            experts_NLK[rows, layer_idx - first] = plane_TK
        none = np.zeros(given.num_tokens, bool)
        return PackedRoutes(
            experts_NLK,
            none,
            given.padding,
            given.num_experts,
            first,
            none,
            in_order=given.in_order,
        )
