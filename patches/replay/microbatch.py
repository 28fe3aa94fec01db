"""The routes of one microbatch on the device, and who has yet to read them.

Shape legend: L layers of the chunk, T rows of this rank's routers, K topk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from routereplay.patches.replay.buffers import BufferRing, Slot
from routereplay.patches.replay.origins import RouteOrigins


class ModelRouting(NamedTuple):
    """What the routers of one model chunk need of the routes."""

    layer_idxs: tuple[int, ...]
    """0-based decoder layer that each router replays, in the order of the routers."""
    topk: int
    num_experts: int


@dataclass(eq=False, slots=True)
class Microbatch:
    """The routes of one microbatch for the routers of one model chunk."""

    ids_LTK: torch.Tensor
    """`[layers, rows, topk]` uint8 or int16 on the device, one plane for each router."""

    live_T: torch.Tensor
    """`[rows]` bool on the device: rows that the router decides."""

    padding_T: torch.Tensor
    """`[rows]` bool on the device."""

    has_live: bool
    """Whether any row is live; without one no router pays for a mask."""

    counts: torch.Tensor
    """`[3]` int64 on the device, of the stream that stages: see `audit`."""

    origins: RouteOrigins

    input_shape: tuple[int, int]
    """The leading sizes of the hidden states that reach the routers."""

    batch_first: bool
    """Whether that is `(b, s)` or `(s, b)`."""

    slot: Slot
    ring: BufferRing
    _reads_left: int
    _held: set[int] = field(default_factory=set)
    """Streams that wait for the ids already."""

    @property
    def is_read(self) -> bool:
        """Whether every router has read its ids, and the buffers may serve another."""
        return self._reads_left == 0

    def wait(self) -> None:
        """Let the current stream wait for the ids.

        Asked by each router: a schedule may run layers on a stream of its own.
        """
        self.slot.ready.hold_stream(self._held)

    def keep(self) -> None:
        """Expect one more read of the ids, by a recompute."""
        self._reads_left += 1

    def read(self) -> None:
        """Count one read of the ids, given to the current stream; the last frees the buffers."""
        self._reads_left -= 1
        if self._reads_left == 0:
            self.ring.give_back(self.slot)

    def forget(self) -> None:
        """Free the buffers although reads are left."""
        if self._reads_left > 0:
            self._reads_left = 0
            self.ring.give_back(self.slot)
