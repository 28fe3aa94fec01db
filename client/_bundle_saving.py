"""Write a bundle: checked batch by batch, and there whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from routereplay.client._bundle_file import write_batch
from routereplay.client._bundle_layout import layout_of
from routereplay.client._bundle_manifest import (
    MANIFEST,
    BatchManifest,
    BundledTrajectory,
    BundleManifest,
    encode_manifest,
    file_name,
)
from routereplay.client.packed import ModelShape, PackedRoutes
from routereplay.wire.digest import digest
from routereplay.wire.errors import InvalidRoutes
from routereplay.wire.routes import check_rows, dtype_for

_BLOCK_ROWS = 8192
"""64 KiB of a plane with topk 8: small enough that a slice verifies little beyond itself."""


@dataclass(frozen=True, eq=False, slots=True)
class BundleBatch:
    """One batch (microbatch) to save."""

    packed: PackedRoutes
    """With all layers of the model."""

    token_ids: npt.ArrayLike
    """One integer for each row of `packed`, in any shape that flattens to them."""

    cu_seqlens: npt.ArrayLike | None = None
    """`[sequences + 1]`, where the packed sequences start in the row and where the last ends."""

    trajectories: Sequence[BundledTrajectory] = ()
    """One for each sequence, if given."""


def write_bundle(
    folder: Path,
    batches: Iterable[BundleBatch],
    model: ModelShape,
    block_rows: int = _BLOCK_ROWS,
) -> BundleManifest:
    """Write `folder` under another name beside it, bring it to the disk, rename it."""
    if folder.exists():
        msg = f"{folder} exists; a bundle is never overwritten: delete it or choose another path"
        raise FileExistsError(msg)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        written = tuple(
            _write(partial / file_name(index), batch, model, block_rows, f"batch {index}")
            for index, batch in enumerate(batches)
        )
        if not written:
            msg = "a bundle needs at least one batch"
            raise ValueError(msg)
        manifest = BundleManifest(
            num_layers=model.num_layers,
            topk=model.topk,
            num_experts=model.num_experts,
            block_rows=block_rows,
            batches=written,
        )
        with (partial / MANIFEST).open("xb") as file:
            file.write(encode_manifest(manifest))
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(partial)
        partial.rename(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _write(
    path: Path, batch: BundleBatch, model: ModelShape, block_rows: int, where: str
) -> BatchManifest:
    packed = batch.packed
    _check_routes(packed, model, where)
    token_ids = _tokens(batch.token_ids, packed.num_tokens, where)
    cu_seqlens = _bounds(batch.cu_seqlens, packed.num_tokens, where)
    sequences = None if cu_seqlens is None else len(cu_seqlens) - 1
    if sequences is not None and batch.trajectories and len(batch.trajectories) != sequences:
        msg = f"{where}: {len(batch.trajectories)} trajectories for {sequences} sequences"
        raise ValueError(msg)
    layout = layout_of(model, packed.num_tokens, sequences, block_rows)
    return BatchManifest(
        rows=packed.num_tokens,
        sequences=sequences,
        token_digest=digest(token_ids[~packed.padding].data),
        index_digest=write_batch(path, layout, packed, token_ids, cu_seqlens, block_rows),
        trajectories=tuple(batch.trajectories),
        in_order=packed.in_order,
    )


def _check_routes(packed: PackedRoutes, model: ModelShape, where: str) -> None:
    check_rows(packed.experts, model.num_experts, where)
    rows, layers, topk = packed.experts.shape
    found = ModelShape(layers, topk, packed.num_experts)
    if found != model or packed.layer_start or packed.experts.dtype != dtype_for(model.num_experts):
        msg = (
            f"{where}: {packed.experts.dtype} routes of {found} from layer {packed.layer_start}; "
            f"a bundle of {model} has {dtype_for(model.num_experts)} routes of all its layers, so "
            "that any pipeline stage can replay it: pack what was fetched without layers="
        )
        raise InvalidRoutes(msg, found=list(found), expected=list(model))
    masks = (packed.live, packed.padding)
    if any(mask.shape != (rows,) or mask.dtype != np.bool_ for mask in masks):
        msg = f"{where}: live and padding must be [{rows}] bool, one for each row"
        raise ValueError(msg)
    if (packed.live & packed.padding).any():
        msg = f"{where}: a row is both live and padding"
        raise ValueError(msg)


def _tokens(token_ids: npt.ArrayLike, rows: int, where: str) -> np.ndarray:
    tokens = np.asarray(token_ids).reshape(-1)
    if len(tokens) != rows or tokens.dtype.kind not in "iu":
        msg = (
            f"{where}: token_ids of shape {np.shape(token_ids)} and dtype {tokens.dtype} for "
            f"{rows} rows; expected one integer for each row"
        )
        raise ValueError(msg)
    narrow = tokens.astype("<i4")
    if (narrow != tokens).any():
        msg = f"{where}: a token id does not fit int32"
        raise ValueError(msg)
    return narrow


def _bounds(cu_seqlens: npt.ArrayLike | None, rows: int, where: str) -> np.ndarray | None:
    if cu_seqlens is None:
        return None
    bounds = np.asarray(cu_seqlens).astype("<i8")
    if bounds.ndim != 1 or not len(bounds) or bounds[0] or (np.diff(bounds) < 0).any():
        msg = f"{where}: cu_seqlens is [sequences + 1] integers rising from 0; got {bounds}"
        raise ValueError(msg)
    if bounds[-1] > rows:
        msg = f"{where}: cu_seqlens ends at {bounds[-1]}, the batch has {rows} rows"
        raise ValueError(msg)
    return bounds


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
