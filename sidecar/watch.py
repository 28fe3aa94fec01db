"""A deadline that may move, on one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_LATE_S = 1.0


class Watch:
    """Calls `expired` when the moment that `due` names has passed.

    `due` returns a time of the loop's clock, or None while there is nothing to wait for.
    It is asked when the watch starts and when its timer fires, so a deadline that moves
    with every byte costs nothing a byte, and one that was met costs one idle firing.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        due: Callable[[], float | None],
        expired: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._due = due
        self._expired = expired
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0

    def start(self) -> None:
        """Watch from now on; it stops by itself when nothing is due."""
        due = self._due()
        if due is None or (self._timer is not None and self._at <= due):
            return
        self.stop()
        self._schedule(due)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, at: float) -> None:
        self._at = at
        self._timer = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        self._timer = None
        due, now = self._due(), self._loop.time()
        if due is None:
            return
        if now < due:
            self._schedule(due)
        elif now - self._at > _LATE_S:
            # The loop was held up, or the whole process was: what the client sent
            # meanwhile waits in the socket, and is read before this fires again.
            self._schedule(now + _LATE_S)
        else:
            self._expired()
