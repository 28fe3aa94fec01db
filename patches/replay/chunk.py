"""`ChunkReplay`: the routers of one model chunk and the microbatch that is open on it.

Each virtual pipeline stage has its own: the schedule interleaves their microbatches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import torch

from routereplay.client.packed import PackedRoutes
from routereplay.patches.replay.canary import Canary
from routereplay.patches.replay.errors import ReplayMismatch, ReplayStateError
from routereplay.patches.replay.layer import LayerReplay
from routereplay.patches.replay.microbatch import Microbatch, ModelRouting
from routereplay.patches.replay.origins import RouteOrigins
from routereplay.patches.replay.prefetch import Staging
from routereplay.patches.replay.recording import ChunkRecording
from routereplay.patches.replay.report import RowCounts
from routereplay.patches.replay.rows import RouterRows

LayerT = TypeVar("LayerT", bound=LayerReplay)


class HostChunk(Protocol):
    """What a host says of the routers of one of its model chunks."""

    @property
    def vp_stage(self) -> int:
        """Index of the chunk among those of this rank."""

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """1-based number of each router's layer, in the order of `routing.layer_idxs`."""

    @property
    def routing(self) -> ModelRouting:
        """What the routers need of the routes."""

    @property
    def device(self) -> torch.device:
        """Where the routers are now."""

    def place(self, row_ids: torch.Tensor) -> RouterRows:
        """Return the rows in the order of the routers, or raise `ReplayMismatch`."""


class ChunkReplay(Generic[LayerT]):
    """State of replay on one model chunk.

    Args:
        host: the chunk.
        staging: shared by the chunks of a model.
        canary: of this chunk.
        make_layer: makes the part of each router: of the chunk, the slot among its routers,
            and the layer's number (1-based).
    """

    def __init__(
        self,
        host: HostChunk,
        staging: Staging,
        canary: Canary,
        make_layer: Callable[[ChunkReplay[LayerT], int, int], LayerT],
    ) -> None:
        self.vp_stage = host.vp_stage
        self.layers: tuple[LayerT, ...] = tuple(
            make_layer(self, slot, number) for slot, number in enumerate(host.layer_numbers)
        )
        self._host = host
        self.canary = canary
        self.current: Microbatch | None = None
        self.opened = 0
        """Microbatches begun in this step."""
        self.prefetched = 0
        """Of those, the ones that were staged ahead."""
        self.trains = False
        """Whether the forward runs with gradients, so that its checkpoints recompute."""
        self.bypasses = 0
        """Depth of nested `bypass()`."""
        self.origins = RouteOrigins()
        """Of the rows of this step."""
        self.recording: ChunkRecording | None = None
        """Keeps what the routers execute, if this step is recorded."""
        self._staging = staging
        self._in_flight: list[Microbatch] = []
        self._num_rows = 0
        self._counts: list[torch.Tensor] = []
        """What `audit` counted of each microbatch of this step."""
        self._counted: list[int] | None = None
        """Their sum, once it was read."""

    def clear(self) -> None:
        """Forget the step; buffers that it still holds are free again."""
        self.current = None
        self.opened = self.prefetched = self._num_rows = 0
        self._counted = self.recording = None
        self._counts.clear()
        self.origins = RouteOrigins()
        for microbatch in self._in_flight:
            microbatch.forget()
        self._in_flight.clear()
        for layer in self.layers:
            layer.clear()

    @property
    def layer_idxs(self) -> tuple[int, ...]:
        """0-based decoder layers of the routes that the routers replay; none without routers."""
        return self._host.routing.layer_idxs if self.layers else ()

    def record(self) -> ChunkRecording:
        """Keep from now on, to the end of the step, what the routers execute."""
        self.recording = ChunkRecording(self.layer_idxs)
        return self.recording

    def prefetch(self, packed: PackedRoutes, row_ids: torch.Tensor) -> None:
        """Stage a microbatch ahead, on the worker thread."""
        if self.layers:
            self._staging.prefetch(self.vp_stage, packed, row_ids, *self._placed(row_ids))

    def begin(self, packed: PackedRoutes, row_ids: torch.Tensor) -> None:
        """Open the next microbatch, after the one before it was executed by every router."""
        skipped = [layer.layer_number for layer in self.layers if layer.calls != self.opened]
        if skipped:
            msg = (
                f"chunk {self.vp_stage}: microbatch {self.opened + 1} begins and the routers of "
                f"layers {skipped} (1-based) have not executed microbatch {self.opened}"
            )
            raise ReplayStateError(msg, layers=skipped)
        if self.layers:
            self.current = self._open(packed, row_ids)
        self.opened += 1
        self.trains = torch.is_grad_enabled()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def enter_decoder(self, _decoder: Any, _inputs: Any) -> None:
        """Note whether gradients are on, outside of every checkpoint of the decoder.

        A forward pre-hook of it. Inside of a checkpoint gradients are off, as they are in a
        pass for log-probs that a trainer runs under `torch.no_grad()`.
        """
        if not self.bypasses:
            self.trains = torch.is_grad_enabled()

    def findings(self) -> list[str]:
        """Return what keeps the step from being whole; reads the device's counter once."""
        where = f"chunk {self.vp_stage}"
        found = [
            f"{where}, layer {layer.layer_number} (1-based): {layer.calls} router calls for "
            f"{self.opened} microbatches"
            for layer in self.layers
            if layer.calls != self.opened
        ]
        found += [finding for layer in self.layers for finding in layer.findings()]
        return found + self.faults()

    def faults(self) -> list[str]:
        """Return what is wrong with the rows that were staged."""
        if not (faults := self._count()[0]):
            return []
        return [f"chunk {self.vp_stage}: {faults} rows {_FAULT}"]

    def rows(self) -> RowCounts:
        """Return how each row of the step's microbatches was routed."""
        _, live, padding = self._count()
        return RowCounts(self._num_rows - live - padding, live, padding)

    def _open(self, packed: PackedRoutes, row_ids: torch.Tensor) -> Microbatch:
        microbatch = self._staging.prefetched(self.vp_stage, packed, row_ids)
        if microbatch is None:
            placed, routing, device = self._placed(row_ids)
            stager = self._staging.stager(device)
            microbatch = stager.fill(stager.take(packed, placed, routing))
        else:
            self.prefetched += 1
        self._in_flight = [held for held in self._in_flight if not held.is_read]
        self._in_flight.append(microbatch)
        self._num_rows += math.prod(microbatch.input_shape)
        self.origins.add(microbatch.origins)
        if self.recording is not None:
            self.recording.begin(packed, self._host.place(row_ids).rows)
        self._counts.append(microbatch.counts)
        # An accelerator's count is read at the end of the step: it is not there yet.
        if microbatch.ring.device.type == "cpu" and (faults := int(microbatch.counts[0])):
            msg = f"chunk {self.vp_stage}: {faults} rows {_FAULT}"
            raise ReplayMismatch(msg, rows=faults)
        return microbatch

    def _count(self) -> list[int]:
        if self._counted is None:
            self._counted = [0, 0, 0]
            if self._counts:
                # On their own stream, idle by the end of a step: nothing waits for the model.
                with self._in_flight[-1].ring.side_stream():
                    self._counted = torch.stack(self._counts).sum(0).tolist()
        return self._counted

    def _placed(self, row_ids: torch.Tensor) -> tuple[RouterRows, ModelRouting, torch.device]:
        return self._host.place(row_ids), self._host.routing, self._host.device


_FAULT = (
    "of the routes (counted for each layer) name an expert twice, or one out of range, or are "
    "no rows of the batch; such a token would lose experts in silence"
)
