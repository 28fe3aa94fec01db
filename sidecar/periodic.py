"""Work that a running store does again and again beside its requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)


class Periodic:
    """Calls `work` every `every_s` seconds until it is stopped; a failure ends only that call."""

    def __init__(self, work: Callable[[], Awaitable[object]], every_s: float) -> None:
        self._work = work
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first call comes after `every_s`."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End, also in the middle of a call."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self._work()
            except Exception:
                logger.exception("%s failed; it is tried again", self._work.__qualname__)
