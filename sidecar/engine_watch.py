"""What is known of the engine between requests: is it in order, is there room, is it the same."""

from __future__ import annotations

import logging
import time
import uuid
from typing import cast

import redis.asyncio

from routereplay.sidecar.errors import EngineMisconfigured
from routereplay.sidecar.metrics import Metrics
from routereplay.sidecar.periodic import Periodic
from routereplay.sidecar.store import keys
from routereplay.sidecar.store.redis_checks import check_engine
from routereplay.sidecar.store.redis_engine import engine_errors, primaries
from routereplay.wire.errors import RouteReplayError, StoreFull, StoreUnavailable

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 30.0
_MEMORY_EVERY_S = 1.0
_MEMORY_FRESH_S = 0.1
_SMALL_BODY_BYTES = 16 * 1024
"""A drop record, or the seal of a short request: what is let in when memory runs low."""
_EPOCH_TTL_S = 30 * 24 * 3600


class EngineWatch:
    """Checks the engine's configuration, its memory and its identity again and again.

    A configuration that drifts away from the promised class stops writes and readiness,
    with the reason, until it is mended; reads and deletions go on.
    """

    def __init__(
        self, client: redis.asyncio.Redis, *, durability: str, high_water: float, metrics: Metrics
    ) -> None:
        self._client = client
        self._durability = durability
        self._high_water = high_water
        self._metrics = metrics
        self._drift: EngineMisconfigured | None = None
        self._epoch: bytes | None = None
        self._fullness = 0.0
        self._looked_at = float("-inf")
        self._checks = Periodic(self._check_quietly, CHECK_EVERY_S)
        self._memory = Periodic(self._look_at_memory, _MEMORY_EVERY_S)

    def start(self) -> None:
        """Begin to look again and again."""
        self._checks.start()
        self._memory.start()

    async def stop(self) -> None:
        """Look no more."""
        await self._checks.stop()
        await self._memory.stop()

    async def check(self) -> None:
        """Raise unless the engine answers and is set up to keep what it is given.

        Raises:
            EngineMisconfigured, StoreUnavailable: see `check_engine`.
        """
        up = False
        try:
            await check_engine(self._client, durability=self._durability)
            self._drift = None
            up = True
            await self._compare_epoch()
        except EngineMisconfigured as error:
            if self._drift is None:
                logger.error("writes are refused from now on: %s", error.message)
            self._drift = error
            raise
        finally:
            self._metrics.engine_up.set(up)

    async def admit(self, nbytes: int) -> None:
        """Raise unless a body of `nbytes` may be written, before any of it is read.

        Raises:
            StoreUnavailable: the engine's configuration has drifted.
            StoreFull: its memory is nearly used up. The rest is kept for deletions, for
                records of losses, and for the engine itself.
        """
        if self._drift is not None:
            self._metrics.backpressure.labels("misconfigured").inc()
            raise StoreUnavailable(self._drift.message)
        if nbytes <= _SMALL_BODY_BYTES or self._fullness < self._high_water:
            return
        if time.monotonic() - self._looked_at > _MEMORY_FRESH_S:
            await self._look_at_memory()
        if self._fullness >= self._high_water:
            self._metrics.backpressure.labels("memory").inc()
            msg = (
                f"the engine's memory is {self._fullness:.0%} used, and from "
                f"{self._high_water:.0%} on new routes must wait; stored ones stay"
            )
            raise StoreFull(msg)

    async def _check_quietly(self) -> None:
        try:
            await self.check()
        except RouteReplayError as error:
            logger.warning("the engine is not in order: %s", error.message)

    async def _look_at_memory(self) -> None:
        used = limit = 0
        fullness = 0.0
        try:
            for ask in await primaries(self._client):
                with engine_errors():
                    info = await ask("INFO", "memory")
                mine, most = int(info["used_memory"]), int(info.get("maxmemory", 0))
                used, limit = used + mine, limit + most
                fullness = max(fullness, mine / most if most else 0.0)
        except StoreUnavailable:
            self._metrics.engine_up.set(0)
            return
        self._fullness, self._looked_at = fullness, time.monotonic()
        self._metrics.engine_memory.labels("used").set(used)
        self._metrics.engine_memory.labels("max").set(limit)

    async def _compare_epoch(self) -> None:
        """Notice that the engine's data was lost: flushed, replaced, or never on disk."""
        fresh = uuid.uuid4().hex.encode()
        with engine_errors():
            await self._client.set(keys.EPOCH, fresh, ex=_EPOCH_TTL_S, nx=True)
            found = cast("bytes", await self._client.getex(keys.EPOCH, ex=_EPOCH_TTL_S))
        if self._epoch is not None and found != self._epoch:
            self._metrics.data_lost.inc()
            logger.error(
                "the engine has lost its data (flushed, restarted without an append-only file, "
                "or replaced): records that were acknowledged before are gone"
            )
        self._epoch = found
