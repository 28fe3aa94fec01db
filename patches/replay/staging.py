"""Bring one microbatch of routes to the device: one copy, however many layers.

Shape legend: N rows of the packed batch, T rows of this rank's routers, L of its MoE
layers, K topk, R the rows that are copied: T, or N if the row ids lie on the device.

A host buffer holds, one after the other, ids `[R, L, K]`, live `[R]` and padding `[R]`,
and goes over in one copy on a stream of its own. Ids stay uint8 (int16 above 256
experts) on the device: eight times less memory than the int64 that a gather wants. A
layer reads its plane where it lies and widens it; no transposed copy is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch

from routereplay.client.packed import PackedRoutes
from routereplay.patches.replay.buffers import BufferRing, Fence, Slot
from routereplay.patches.replay.errors import ReplayMismatch
from routereplay.patches.replay.fit import check_fits
from routereplay.patches.replay.microbatch import Microbatch, ModelRouting
from routereplay.patches.replay.origins import RouteOrigins, origins_of
from routereplay.patches.replay.rows import RouterRows, audit, copy_rows


class _Job(NamedTuple):
    packed: PackedRoutes
    placed: RouterRows
    routing: ModelRouting
    slot: Slot
    rows_ready: Fence


class Stager:
    """Stages microbatches to one device. `take` runs on the training thread, `fill` on any."""

    def __init__(self, device: torch.device) -> None:
        self.ring = BufferRing(device)

    def take(self, packed: PackedRoutes, placed: RouterRows, routing: ModelRouting) -> _Job:
        """Reserve the buffers of one microbatch; memory must come from the training thread.

        Raises:
            ReplayMismatch: the routes are not of this model.
        """
        check_fits(
            packed,
            num_experts=routing.num_experts,
            topk=routing.topk,
            layer_idxs=routing.layer_idxs,
        )
        row_bytes = len(routing.layer_idxs) * routing.topk * packed.experts.itemsize + 2
        on_host = is_on_host(placed.rows)
        copied = len(placed.rows) if on_host else packed.num_tokens
        picked = 0 if on_host else len(placed.rows)
        slot = self.ring.take(copied * row_bytes, picked * row_bytes)
        rows_ready = Fence(self.ring.device)
        if not on_host:
            rows_ready.record()
            self.ring.keep_for_side_stream(placed.rows)
        return _Job(packed, placed, routing, slot, rows_ready)

    def fill(self, job: _Job) -> Microbatch:
        """Gather rows and layers, start the copy and the count; return without waiting.

        Raises:
            ReplayMismatch: row ids on the host that are no rows of the batch.
        """
        slot, routing = job.slot, job.routing
        with self.ring.side_stream(), torch.no_grad(), ExitStack() as undo:
            undo.callback(self.ring.give_back, slot)
            host = _gather(job)
            has_live = bool(host.block.live.any())
            slot.consumed.hold_stream()
            if slot.copied is not slot.host:
                size = host.block.size
                slot.copied[:size].copy_(slot.host[:size], non_blocking=True)
            block = _Block.of(slot.copied, host.block.ids.shape, host.block.ids.dtype)
            absent = None
            if not is_on_host(job.placed.rows):
                job.rows_ready.hold_stream()
                block, absent = _pick(block, job.placed.rows, slot.picked)
            counts = audit(block.ids, block.live, block.padding, routing.num_experts)
            if absent is not None:
                counts[0].add_(absent)
            slot.ready.record()
            undo.pop_all()
        return Microbatch(
            ids_LTK=block.ids.transpose(0, 1),
            live_T=block.live,
            padding_T=block.padding,
            has_live=has_live,
            counts=counts,
            origins=host.origins,
            input_shape=job.placed.input_shape,
            batch_first=job.placed.batch_first,
            slot=slot,
            ring=self.ring,
            _reads_left=len(routing.layer_idxs),
        )


def is_on_host(rows_T: torch.Tensor) -> bool:
    """Whether the host can read the row ids without waiting for a device."""
    return rows_T.device.type == "cpu"


class _Block(NamedTuple):
    """The three parts of a buffer."""

    ids: torch.Tensor
    live: torch.Tensor
    padding: torch.Tensor
    size: int

    @classmethod
    def of(cls, buffer: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> _Block:
        rows, layers, topk = shape
        ids = rows * layers * topk * dtype.itemsize
        return cls(
            buffer[:ids].view(dtype).view(rows, layers, topk),
            buffer[ids : ids + rows].view(torch.bool),
            buffer[ids + rows : ids + 2 * rows].view(torch.bool),
            ids + 2 * rows,
        )


class _OnHost(NamedTuple):
    block: _Block
    origins: RouteOrigins


def _gather(job: _Job) -> _OnHost:
    """Fill the host buffer with the rows to copy: this rank's, or all if a device picks them."""
    packed, routing = job.packed, job.routing
    on_host = is_on_host(job.placed.rows)
    rows = _checked_rows(job.placed.rows, packed.num_tokens) if on_host else None
    staged = packed.num_tokens if rows is None else len(rows)
    shape = (staged, len(routing.layer_idxs), routing.topk)
    host = _Block.of(job.slot.host, shape, _TORCH_DTYPES[packed.experts.dtype.name])
    planes = _planes(routing.layer_idxs, packed.layer_start)
    copy_rows(_signed(packed.experts)[:, planes], rows, host.ids.numpy())
    copy_rows(packed.live, rows, host.live.numpy())
    copy_rows(packed.padding, rows, host.padding.numpy())
    return _OnHost(host, origins_of(packed, rows))


def _pick(block: _Block, rows_T: torch.Tensor, into: torch.Tensor) -> tuple[_Block, torch.Tensor]:
    """Gather this rank's rows on the device; also return how many are no rows of the batch."""
    # Clamped and counted: an index out of range would kill the process's CUDA context.
    safe_T = rows_T.clamp(0, len(block.ids) - 1)
    picked = _Block.of(into, (len(rows_T), *block.ids.shape[1:]), block.ids.dtype)
    torch.index_select(block.ids, 0, safe_T, out=picked.ids)
    torch.index_select(block.live, 0, safe_T, out=picked.live)
    torch.index_select(block.padding, 0, safe_T, out=picked.padding)
    return picked, (safe_T != rows_T).sum()


def _planes(layer_idxs: Sequence[int], layer_start: int) -> slice | list[int]:
    """Return the planes of the record, as a slice (a view) wherever they are evenly spaced."""
    planes = [layer_idx - layer_start for layer_idx in layer_idxs]
    step = planes[1] - planes[0] if len(planes) > 1 else 1
    if step > 0 and planes == list(range(planes[0], planes[-1] + 1, step)):
        return slice(planes[0], planes[-1] + 1, step)
    return planes


def _signed(experts: np.ndarray) -> np.ndarray:
    # The refusal of more than 2**15 experts keeps the sign bit clear.
    return experts.view(np.int16) if experts.dtype == np.uint16 else experts


def _checked_rows(rows: torch.Tensor, num_tokens: int) -> np.ndarray:
    ids: np.ndarray = rows.numpy()
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= num_tokens):
        msg = (
            f"row_ids reach from {int(ids.min())} to {int(ids.max())}, the packed routes have "
            f"rows 0 to {num_tokens - 1}: they belong to another batch"
        )
        raise ReplayMismatch(msg, num_tokens=num_tokens)
    return ids


_TORCH_DTYPES = {"uint8": torch.uint8, "uint16": torch.int16}
