"""Memory that deleted values leave: used again by the next, and given back if there is much.

glibc can give every value back when it is deleted (`MALLOC_MMAP_THRESHOLD_`), and then every
new value is written to pages that the kernel has to zero: more CPU than all else that the
engine does for it. So freed memory stays with the engine, until it is much.
"""

from __future__ import annotations

import contextlib

from redis import exceptions as refusals

from routereplay.sidecar.periodic import Periodic
from routereplay.sidecar.store.redis_engine import close, connect

_LOOK_EVERY_S = 0.1
_LEAST_BYTES = 64 * 1024 * 1024
_MOST_BYTES = 128 * 1024 * 1024
"""Giving a gigabyte back holds the engine up for 75 ms, and more comes between two looks."""


MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(_LEAST_BYTES),
}
"""Environment of the engine: no value is mapped on its own, so what one leaves the next can use."""


def keepable_bytes(used: int) -> int:
    """Return how many free bytes an engine keeps that holds `used` bytes."""
    return min(_LEAST_BYTES + used // 2, _MOST_BYTES)


class MemoryReturn:
    """Has an engine of ours return its free memory to the system when it is more than it keeps."""

    def __init__(self, url: str) -> None:
        self._client = connect(url, timeout_s=1.0, connections=1)
        self._looks = Periodic(self._look, _LOOK_EVERY_S)

    def start(self) -> None:
        """Begin to look again and again."""
        self._looks.start()

    async def stop(self) -> None:
        """Look no more."""
        await self._looks.stop()
        await close(self._client)

    async def _look(self) -> None:
        # While it is restarted it does not answer, and has given everything back.
        with contextlib.suppress(refusals.RedisError, TimeoutError, OSError):
            info = await self._client.info("memory")
            used = int(info["used_memory"])
            if int(info["used_memory_rss"]) - used > keepable_bytes(used):
                # The one command that ends in malloc_trim; there are no functions to lose.
                await self._client.function_flush("SYNC")
