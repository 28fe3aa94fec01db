"""Blobs in Redis or Valkey: one string a value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import redis.asyncio

from routereplay.sidecar.store.redis_engine import engine_errors
from routereplay.wire.digest import Buffer

_WINDOW_BYTES = 4 * 1024 * 1024


class RedisBlobs:
    """Values whose keys hold their content's digest; see `store.base.Blobs`."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def put(self, values: Sequence[tuple[str, Buffer]], ttl_s: int) -> None:
        """Store values that live `ttl_s`; one that is there already stays and lives as long.

        `NX` and `GT`, so that a late retry cannot shorten the life of a sealed value.
        """
        for window in _windows(values):
            with engine_errors():
                async with self._client.pipeline(transaction=False) as pipe:
                    for key, value in window:
                        # redis-py joins its arguments anyway, and is slower with views.
                        pipe.set(key, bytes(value), ex=ttl_s, nx=True)
                        pipe.expire(key, ttl_s, gt=True)
                    await pipe.execute()

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of keys of one tag, `None` for each that is gone."""
        if not keys:
            return []
        with engine_errors():
            values = await self._client.mget(keys)
        return cast("list[bytes | None]", values)


def _windows(values: Sequence[tuple[str, Buffer]]) -> Iterator[list[tuple[str, Buffer]]]:
    """Group values so that one round trip holds a bounded number of bytes."""
    window: list[tuple[str, Buffer]] = []
    nbytes = 0
    for key, value in values:
        window.append((key, value))
        nbytes += memoryview(value).nbytes
        if nbytes >= _WINDOW_BYTES:
            yield window
            window, nbytes = [], 0
    if window:
        yield window
