"""Blobs in one Redis or Valkey, received into and sent from the memory that they are in."""

from __future__ import annotations

from collections.abc import Sequence

from redis import exceptions as refusals

from routereplay.sidecar.store.base import Wanted
from routereplay.sidecar.store.redis_engine import engine_errors
from routereplay.sidecar.store.resp import Reply
from routereplay.sidecar.store.resp_pool import RespPool
from routereplay.sidecar.store.windows import windows
from routereplay.wire.digest import Buffer


class RespBlobs:
    """Values whose keys hold their content's digest; see `store.base.Blobs`."""

    def __init__(self, pool: RespPool) -> None:
        self._pool = pool

    async def put(self, values: Sequence[tuple[str, Buffer]], ttl_s: int) -> None:
        """Store values that live `ttl_s`; one that is there already stays and lives as long."""
        ttl = b"%d" % ttl_s
        for window in windows(values, lambda value: memoryview(value[1]).nbytes):
            names = [key.encode() for key, _ in window]
            # NX and GT: a late retry must not shorten the life of a sealed value.
            stored = await self._call(
                [
                    [b"SET", name, value, b"EX", ttl, b"NX"]
                    for name, (_, value) in zip(names, window, strict=True)
                ]
            )
            held = [name for name, reply in zip(names, stored, strict=True) if reply is None]
            if held:
                await self._call([[b"EXPIRE", name, ttl, b"GT"] for name in held])

    async def read(self, wanted: Sequence[Wanted]) -> list[int | None]:
        """Receive values or parts of them; return the length of each, or None if it is gone."""
        lengths: list[int | None] = []
        for window in windows(wanted, lambda want: len(want.into)):
            commands = [_get(want) for want in window]
            places = [want.into for want in window]
            with engine_errors():
                replies = _checked(await self._pool.call(commands, places))
            for want, reply in zip(window, replies, strict=True):
                length = reply if isinstance(reply, int) else None
                # A part of what is not there is a string of nothing.
                lengths.append(None if want.start is not None and not length else length)
        return lengths

    async def _call(self, commands: Sequence[Sequence[Buffer]]) -> list[Reply]:
        with engine_errors():
            return _checked(await self._pool.call(commands, [None] * len(commands)))


def _get(want: Wanted) -> Sequence[Buffer]:
    name = want.key.encode()
    if want.start is None:
        return [b"GET", name]
    last = want.start + len(want.into) - 1
    return [b"GETRANGE", name, b"%d" % want.start, b"%d" % last]


def _checked(replies: list[Reply]) -> list[Reply]:
    for reply in replies:
        if isinstance(reply, refusals.ResponseError):
            raise reply
    return replies
