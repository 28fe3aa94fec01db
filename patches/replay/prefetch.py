"""`Staging`: microbatches staged when they begin, or ahead of that on a worker thread.

Gathering rows on the host takes a core some milliseconds for a microbatch. Staged ahead,
they pass while the device works on the microbatch before.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from routereplay.client.packed import PackedRoutes
from routereplay.patches.replay.errors import ReplayStateError
from routereplay.patches.replay.microbatch import Microbatch, ModelRouting
from routereplay.patches.replay.rows import RouterRows
from routereplay.patches.replay.staging import Stager

MAX_AHEAD = 16
"""Microbatches staged ahead and not begun; more means that their batches never come."""


class _Ahead(NamedTuple):
    vp_stage: int
    packed: PackedRoutes
    row_ids: torch.Tensor
    microbatch: Future[Microbatch]

    def is_for(self, vp_stage: int, packed: PackedRoutes, row_ids: torch.Tensor) -> bool:
        if vp_stage != self.vp_stage or packed is not self.packed:
            return False
        if row_ids is self.row_ids:
            return True
        # Comparing ids on a device would wait for it.
        on_host = row_ids.device.type == self.row_ids.device.type == "cpu"
        return on_host and torch.equal(row_ids, self.row_ids)


class Staging:
    """Stages the microbatches of all chunks of one model."""

    def __init__(self) -> None:
        self._stagers: dict[torch.device, Stager] = {}
        self._worker: ThreadPoolExecutor | None = None
        self._ahead: list[_Ahead] = []

    def stager(self, device: torch.device) -> Stager:
        """Return the stager of `device`."""
        if device not in self._stagers:
            self._stagers[device] = Stager(device)
        return self._stagers[device]

    def prefetch(
        self,
        vp_stage: int,
        packed: PackedRoutes,
        row_ids: torch.Tensor,
        placed: RouterRows,
        routing: ModelRouting,
        device: torch.device,
    ) -> None:
        """Stage a microbatch on the worker thread.

        Raises:
            ReplayMismatch: the routes are not of this model.
            ReplayStateError: `MAX_AHEAD` microbatches wait already.
        """
        if len(self._ahead) >= MAX_AHEAD:
            msg = (
                f"{len(self._ahead)} microbatches were prefetched and not begun; "
                "begin_microbatch() finds one by its very `packed` and the same row_ids"
            )
            raise ReplayStateError(msg, waiting=len(self._ahead))
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="routereplay-prefetch")
        stager = self.stager(device)
        job = stager.take(packed, placed, routing)
        future = self._worker.submit(stager.fill, job)
        self._ahead.append(_Ahead(vp_stage, packed, row_ids, future))

    def prefetched(
        self, vp_stage: int, packed: PackedRoutes, row_ids: torch.Tensor
    ) -> Microbatch | None:
        """Return the microbatch if it was prefetched, else None. Raises what staging raised."""
        for index, ahead in enumerate(self._ahead):
            if ahead.is_for(vp_stage, packed, row_ids):
                del self._ahead[index]
                return ahead.microbatch.result()
        return None

    def forget(self) -> None:
        """Drop everything that was prefetched and not begun."""
        waiting, self._ahead = self._ahead, []
        for ahead in waiting:
            if ahead.microbatch.exception() is None:
                ahead.microbatch.result().forget()

    def close(self) -> None:
        """Forget, end the worker thread and let go of all buffers."""
        self.forget()
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None
        self._stagers.clear()
