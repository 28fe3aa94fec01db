"""Whether packed routes belong to this model at all, before anything of them is copied."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routereplay.client.packed import PackedRoutes
from routereplay.patches.replay.errors import ReplayMismatch
from routereplay.wire.routes import dtype_for, numpy_dtype


def check_fits(
    packed: PackedRoutes, *, num_experts: int, topk: int, layer_idxs: Sequence[int]
) -> None:
    """Raise `ReplayMismatch` unless `packed` holds routes for these layers of this model.

    Catches routes of another model, a pipeline stage that was sent another stage's
    layers, and a layer that is MoE here and dense (an all-zero plane) in the record.
    """
    _, layers, recorded_topk = packed.experts.shape
    if packed.experts.itemsize < numpy_dtype(dtype_for(packed.num_experts)).itemsize:
        msg = (
            f"routes of {packed.num_experts} experts come as {packed.experts.dtype}: ids past 255 "
            "do not fit a byte, and wrap to others; record them as uint16"
        )
        raise ReplayMismatch(msg, dtype=packed.experts.dtype.name)
    if packed.num_experts != num_experts or recorded_topk != topk:
        msg = (
            f"the routes choose {recorded_topk} of {packed.num_experts} experts, the model "
            f"chooses {topk} of {num_experts}: they were recorded from another model"
        )
        raise ReplayMismatch(msg, recorded=[recorded_topk, packed.num_experts])
    have = range(packed.layer_start, packed.layer_start + layers)
    absent = [layer_idx for layer_idx in layer_idxs if layer_idx not in have]
    if absent:
        msg = (
            f"the routes hold layers {have.start}:{have.stop} (0-based), this model chunk needs "
            f"{absent} too; fetch the layers that the pipeline stage owns"
        )
        raise ReplayMismatch(msg, missing_layers=absent)
    # Padding rows hold balanced experts on dense planes too, and would hide them.
    recorded = np.flatnonzero(~(packed.live | packed.padding))
    dense = [idx for idx in layer_idxs if _is_dense(packed, idx - packed.layer_start, recorded)]
    if dense:
        msg = (
            f"layers {dense} (0-based) are MoE layers of this model and all zeros in the routes, "
            "as dense layers are: they were recorded from another model, or not at all"
        )
        raise ReplayMismatch(msg, dense_layers=dense)


def _is_dense(packed: PackedRoutes, plane: int, recorded: np.ndarray) -> bool:
    if not len(recorded) or packed.experts[recorded[0], plane].any():
        return False  # One row with an expert other than 0 settles it without a scan.
    return not packed.experts[recorded, plane].any()
