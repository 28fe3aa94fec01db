"""Buffers that carry routes to the device, made once and used again and again.

A slot is one pinned host buffer with its twin on the device. It serves one microbatch at
a time, from the copy until the last router, in forward or in recompute, has read its
ids. On the CPU the twins are one buffer and nothing is ever waited for, but a slot is
taken and given back at the same moments, so that a slot given back too early shows there.

The ring is as deep as it must be: microbatches in flight, those prefetched, and those
that the device has not caught up with. Nothing is allocated once it has that depth.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

import torch

_GRAIN_BYTES = 2**20
"""Buffers are multiples of this, so that microbatches of about one size share them."""


class Fence:
    """A moment in the work of a stream. On the CPU it has always passed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    def record(self) -> None:
        """Set the fence behind all work that the current stream was given so far."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._device))

    def has_passed(self) -> bool:
        """Whether the device got past it; does not wait."""
        return self._event is None or self._event.query()

    def hold_stream(self, held: set[int] | None = None) -> None:
        """Let the current stream begin nothing more before the fence has passed; returns at once.

        It is the stream that waits, not the host.

        Args:
            held: streams that wait already, to which the current one is added.
        """
        if self._event is None:
            return
        if held is not None:
            # `current_stream` makes an object, ten times as slow as asking for the handle.
            stream = torch._C._cuda_getCurrentRawStream(self._device.index)
            if stream in held:
                return
            held.add(stream)
        self._event.wait(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Let the host wait until it has passed."""
        if self._event is not None:
            self._event.synchronize()


class Slot:
    """The buffers of one microbatch."""

    def __init__(self, device: torch.device) -> None:
        self.ready = Fence(device)
        """The ids are on the device and were counted."""
        self.consumed = Fence(device)
        """The last router has read them."""
        self.host = torch.empty(0, dtype=torch.uint8)
        self.copied = torch.empty(0, dtype=torch.uint8, device=device)
        """What the host buffer holds, on the device."""
        self.picked = torch.empty(0, dtype=torch.uint8, device=device)
        """This rank's rows of it, if the row ids lie on the device."""


class BufferRing:
    """The slots of one device, and the stream that fills them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._free: deque[Slot] = deque()
        self.depth = 0
        """Slots made so far."""

    def side_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Make the stream current that copies beside the training step."""
        if self._side is None:
            return contextlib.nullcontext()
        return torch.cuda.stream(self._side)

    def take(self, copied_bytes: int, picked_bytes: int) -> Slot:
        """Return a free slot with that much room; the device has finished with it."""
        if self._free and self._free[0].consumed.has_passed():
            slot = self._free.popleft()
        else:
            slot = Slot(self.device)
            self.depth += 1
        self._reserve(slot, copied_bytes, picked_bytes)
        return slot

    def give_back(self, slot: Slot) -> None:
        """Take a slot back; what the current stream was given so far may still read it."""
        slot.consumed.record()
        self._free.append(slot)

    def keep_for_side_stream(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor`; its memory is not given away while the side stream uses it."""
        if self._side is not None:
            tensor.record_stream(self._side)
        return tensor

    def _reserve(self, slot: Slot, copied_bytes: int, picked_bytes: int) -> None:
        grown = False
        if len(slot.host) < copied_bytes:
            room = _rounded(copied_bytes)
            slot.host = torch.empty(room, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            slot.copied = slot.host if self.device.type == "cpu" else self._empty(room)
            grown = True
        if len(slot.picked) < picked_bytes:
            slot.picked = self._empty(_rounded(picked_bytes))
            grown = True
        if grown:
            # New memory comes to the current stream, which may still use what lay there.
            slot.consumed.record()

    def _empty(self, room: int) -> torch.Tensor:
        return self.keep_for_side_stream(torch.empty(room, dtype=torch.uint8, device=self.device))


def _rounded(size: int) -> int:
    return -(-size // _GRAIN_BYTES) * _GRAIN_BYTES
