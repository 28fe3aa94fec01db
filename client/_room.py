"""Memory that answers are received into: the caller's, or new."""

from __future__ import annotations

from routereplay.client._http import fresh
from routereplay.wire.digest import Buffer
from routereplay.wire.frame import aligned


class Room:
    """Hands out the caller's memory, one answer behind the other, each 64-aligned.

    Args:
        out: writable, C-contiguous; None for new memory each time.
    """

    def __init__(self, out: Buffer | None) -> None:
        self._view = None if out is None else memoryview(out).cast("B")
        if self._view is not None and self._view.readonly:
            msg = "out= is read-only; routes are received into it"
            raise ValueError(msg)
        self._kept = 0

    def take(self, nbytes: int) -> memoryview:
        """Return room for a body; the same again until it is kept, as a call may be repeated."""
        if self._view is None:
            return fresh(nbytes)
        view = self._view[self._kept : self._kept + nbytes]
        if len(view) < nbytes:
            msg = (
                f"out= holds {len(self._view)} bytes, of which {self._kept} are used; the next "
                f"answer needs {nbytes}"
            )
            raise ValueError(msg)
        return view

    def keep(self, body: memoryview) -> None:
        """Leave `body` where it is; what comes next goes behind it."""
        self._kept = aligned(self._kept + len(body))
