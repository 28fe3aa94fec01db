"""Memory for payloads, of which one process holds a bounded amount."""

from __future__ import annotations

import weakref

import numpy as np


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
