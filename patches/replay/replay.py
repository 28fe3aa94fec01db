"""`RouterReplay`: replay enabled on the live routers of one model, and its life cycle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from routereplay.client.packed import PackedRoutes
from routereplay.patches.replay.accounting import finish, incomplete
from routereplay.patches.replay.bundled import BundledRoutes
from routereplay.patches.replay.chunk import ChunkReplay
from routereplay.patches.replay.errors import ReplayError, ReplayStateError
from routereplay.patches.replay.prefetch import Staging
from routereplay.patches.replay.recording import Recording
from routereplay.patches.replay.report import StepReport

logger = logging.getLogger(__name__)


class RouterReplay:
    """Replay on the routers of one model. Made by `enable_router_replay`.

    Args:
        chunks: the model's, bound to its routers.
        staging: of these chunks.
        unbind: each puts back on the model what was there.
        bundle: whose batches `begin_bundled` begins.
    """

    def __init__(
        self,
        chunks: Sequence[ChunkReplay[Any]],
        staging: Staging,
        unbind: Sequence[Callable[[], None]],
        bundle: BundledRoutes | None = None,
    ) -> None:
        self._chunks = tuple(chunks)
        self._staging = staging
        self._unbind = tuple(unbind)
        self._bundle = bundle
        self._in_step = False
        self._enabled = True
        self.last_step: StepReport | None = None
        """The last step that ended whole."""
        self.last_recording: Recording | None = None
        """What the last recorded step executed, if it ended whole."""
        logger.info(
            "router replay enabled on %d routers, layers %s (1-based)",
            len(self.layer_numbers),
            self.layer_numbers,
        )

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """1-based numbers of the layers that are replayed on this rank."""
        return tuple(layer.layer_number for chunk in self._chunks for layer in chunk.layers)

    @contextmanager
    def step(self, *, record: bool = False) -> Iterator[RouterReplay]:
        """Replay inside; at the end, prove that every route was executed as it must be.

        Each router must have run once for each microbatch, and each checkpointed call
        must have been recomputed once. If the body raises, the step is forgotten and
        the error goes on.

        Args:
            record: keep the experts that are executed, live and replayed, in
                `last_recording`, for updates that replay this step.

        Raises:
            ReplayIncomplete: with everything that is missing or left over.
            ReplayMisrouted: everything was executed, but for other tokens or layers than
                it was recorded for.
            ReplayStateError: a step is open already, or replay is disabled.
        """
        self._check_enabled("step()")
        if self._in_step:
            msg = "step() was entered inside step(); a step is one forward_backward_func"
            raise ReplayStateError(msg)
        self._clear()
        for chunk in self._chunks:
            chunk.canary.begin_step()
        recording = Recording([chunk.record() for chunk in self._chunks]) if record else None
        self._in_step = True
        finished = False
        try:
            yield self
            self.last_step = finish(self._chunks)
            if recording is not None:
                self.last_recording = recording
            finished = True
        except ReplayError:
            raise
        except Exception as error:
            # On CUDA a bad row is known only now, and dispatchers fail on it first.
            if faults := [fault for chunk in self._chunks for fault in chunk.faults()]:
                raise incomplete(faults) from error
            raise
        finally:
            self._in_step = False
            self._clear()
            if not finished:
                self._abandon()

    def prefetch(
        self, packed: PackedRoutes, row_ids: torch.Tensor, *, vp_stage: int | None = None
    ) -> None:
        """Stage a coming microbatch on a worker thread; `begin_microbatch` then only takes it.

        Call it from the training thread between forward and backward of the microbatch
        before, when the device is busy and the host ahead, or before the step; then
        `begin_microbatch` with this very `packed` and the same `row_ids`, and change
        neither until then. Microbatches may be begun without; a step that fails drops
        what was prefetched.

        Args:
            packed, row_ids, vp_stage: as for `begin_microbatch`.

        Raises:
            ReplayStateError: replay is disabled, or too many wait to be begun.
            ReplayMismatch: the routes are not this model's.
        """
        self._check_enabled("prefetch()")
        self._chunk(vp_stage).prefetch(packed, row_ids)

    def begin_microbatch(
        self, packed: PackedRoutes, row_ids: torch.Tensor, *, vp_stage: int | None = None
    ) -> None:
        """Open the next microbatch of a chunk; call it in forward_step, before the model.

        Rows of `packed.live` take the router's own choice, all others execute `packed`.

        Args:
            packed: routes of the batch, with at least the layers of this chunk.
            row_ids: `[b, s_local]` integers, the flat row of `packed` for each position
                of this rank's `input_ids`: an arange that went through the trainer's own
                packing and context-parallel code. On the CPU, only those rows are
                copied to the device; on the device, all rows of `packed` are.
            vp_stage: index of the chunk in `model_chunks`; needed if there are several.

        Raises:
            ReplayStateError: outside of `step()`, or the microbatch before was not executed.
            ReplayMismatch: the routes are not this model's, or not this batch's.
        """
        self._check_enabled("begin_microbatch()")
        if not self._in_step:
            msg = "begin_microbatch() outside of step(); wrap forward_backward_func in step()"
            raise ReplayStateError(msg)
        self._chunk(vp_stage).begin(packed, row_ids)

    def begin_bundled(
        self,
        index: int,
        row_ids: torch.Tensor,
        token_ids: torch.Tensor,
        *,
        vp_stage: int | None = None,
    ) -> None:
        """Open the next microbatch of a chunk with batch `index` of `routereplay_bundle`.

        Only this rank's rows and the chunk's layers are read, and verified.

        Args:
            index: 0-based batch of the bundle.
            row_ids, vp_stage: as for `begin_microbatch`, rows of the batch as it was saved.
            token_ids: `[b, s_local]`, this rank's `input_ids`: the bundle must have been
                saved for them. On a device, `row_ids` and `token_ids` are waited for.

        Raises:
            MisalignedRoutes: the bundle was saved for other tokens, or not in this order.
            CorruptRecord: what was read is not what was saved.
            IndexError: the bundle has no such batch or row.
            ReplayStateError, ReplayMismatch: as `begin_microbatch`, or there is no bundle.
        """
        self._check_enabled("begin_bundled()")
        if self._bundle is None:
            msg = "begin_bundled() without enable_router_replay(..., routereplay_bundle=path)"
            raise ReplayStateError(msg)
        # A stage without routers reads a layer too, so that its tokens are compared.
        layer_idxs = self._chunk(vp_stage).layer_idxs or (0,)
        packed = self._bundle.packed(index, layer_idxs, row_ids, token_ids)
        own_rows = torch.arange(row_ids.numel()).view(row_ids.shape)
        self.begin_microbatch(packed, own_rows, vp_stage=vp_stage)

    @contextmanager
    def bypass(self) -> Iterator[None]:
        """Route live inside: for a reference, teacher or evaluation pass of the same model.

        A backward of such a pass must end inside too.
        """
        for chunk in self._chunks:
            chunk.bypasses += 1
        try:
            yield
        finally:
            for chunk in self._chunks:
                chunk.bypasses -= 1

    def disable(self) -> None:
        """Put back on every router exactly what was there. Does nothing the second time.

        Raises:
            ReplayStateError: inside `step()`.
        """
        if self._in_step:
            msg = "disable() inside step(); end the step first"
            raise ReplayStateError(msg)
        if self._enabled:
            for undo in self._unbind:
                undo()
            self._staging.close()
            self._enabled = False

    def _chunk(self, vp_stage: int | None) -> ChunkReplay[Any]:
        if vp_stage is None and len(self._chunks) == 1:
            return self._chunks[0]
        if vp_stage is None or not 0 <= vp_stage < len(self._chunks):
            msg = (
                f"vp_stage={vp_stage} with {len(self._chunks)} model chunks; begin_microbatch() "
                f"needs the index of the chunk whose forward follows"
            )
            raise ReplayStateError(msg, vp_stage=vp_stage)
        return self._chunks[vp_stage]

    def _clear(self) -> None:
        for chunk in self._chunks:
            chunk.clear()

    def _abandon(self) -> None:
        self._staging.forget()
        for chunk in self._chunks:
            chunk.canary.forget()

    def _check_enabled(self, what: str) -> None:
        if not self._enabled:
            msg = f"{what} after disable(); call enable_router_replay() again"
            raise ReplayStateError(msg)
