"""Memory for payloads: a bounded amount in all, and some that is used again.

Fresh memory is dear: its pages are faulted in one by one, which costs several times the
copying that it is for.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

import numpy as np

from routereplay.sidecar.store.windows import WINDOW_BYTES


class Room:
    """Hands out memory until there is none left; it comes back when nobody holds it."""

    def __init__(self, nbytes: int) -> None:
        self._left = nbytes

    def take(self, nbytes: int) -> memoryview | None:
        """Return memory, not zeroed, or None if there is not enough left."""
        if nbytes > self._left:
            return None
        self._left -= nbytes
        memory = np.empty(nbytes, np.uint8)
        weakref.finalize(memory, self._give, nbytes)
        return memory.data

    def _give(self, nbytes: int) -> None:
        self._left += nbytes


class Scratch:
    """Lends memory for a moment, the same again and again.

    Args:
        most: pieces that are kept.
        nbytes: longest piece that is kept, and least that is made.
    """

    def __init__(self, most: int, nbytes: int) -> None:
        self._most = most
        self._nbytes = nbytes
        self._free: list[np.ndarray] = []

    @contextlib.contextmanager
    def lent(self, nbytes: int) -> Iterator[memoryview]:
        """Lend memory, not zeroed, for the block; nothing may refer to it afterwards."""
        memory = self._free.pop() if self._free and nbytes <= self._nbytes else None
        if memory is None:
            memory = np.empty(max(nbytes, self._nbytes), np.uint8)
        yield memory.data[:nbytes]
        # Not after an error: a thread may still be at work with it.
        if memory.nbytes == self._nbytes and len(self._free) < self._most:
            self._free.append(memory)


shared_scratch = Scratch(4, 2 * WINDOW_BYTES)
"""For windows of values on their way in and out: one store of memory, as each process does both."""
