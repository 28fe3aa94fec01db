"""Blobs in Redis or Valkey: one string a value."""

from __future__ import annotations

from collections.abc import Sequence

import redis.asyncio

from routereplay.sidecar.store.base import Wanted
from routereplay.sidecar.store.redis_engine import engine_errors
from routereplay.sidecar.store.windows import windows
from routereplay.wire.digest import Buffer


class RedisBlobs:
    """Values whose keys hold their content's digest; see `store.base.Blobs`."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def put(self, values: Sequence[tuple[str, Buffer]], ttl_s: int) -> None:
        """Store values that live `ttl_s`; one that is there already stays and lives as long.

        `NX` and `GT`, so that a late retry cannot shorten the life of a sealed value.
        """
        for window in windows(values, lambda value: memoryview(value[1]).nbytes):
            with engine_errors():
                async with self._client.pipeline(transaction=False) as pipe:
                    for key, value in window:
                        # redis-py joins its arguments anyway, and is slower with views.
                        pipe.set(key, bytes(value), ex=ttl_s, nx=True)
                        pipe.expire(key, ttl_s, gt=True)
                    await pipe.execute()

    async def read(self, wanted: Sequence[Wanted]) -> list[int | None]:
        """Read values or parts of them; return the length of each, or None if it is gone."""
        lengths: list[int | None] = []
        for window in windows(wanted, lambda want: len(want.into)):
            with engine_errors():
                async with self._client.pipeline(transaction=False) as pipe:
                    for want in window:
                        if want.start is None:
                            pipe.get(want.key)
                        else:
                            pipe.getrange(want.key, want.start, want.start + len(want.into) - 1)
                    values: list[bytes | None] = await pipe.execute()
            for want, value in zip(window, values, strict=True):
                if value is None or (want.start is not None and not value):
                    lengths.append(None)
                    continue
                if len(value) == len(want.into):
                    want.into[:] = value
                lengths.append(len(value))
        return lengths
