"""Short commands of the index: by redis-py wherever it is needed, and straight where not.

redis-py spends several times the Python on a command that a connection of our own does; a
request of a few hundred bytes is ten commands, and little else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast

import redis.asyncio
from redis import exceptions as refusals

from routereplay.sidecar.store.redis_engine import script_text
from routereplay.sidecar.store.resp_pool import RespPool

Word: TypeAlias = str | bytes | int


class Commands(Protocol):
    """Sends commands to an engine; raises what redis-py raises."""

    async def run(self, *commands: Sequence[Word]) -> list[Any]:
        """Return the replies to commands that are sent at once, in order."""

    async def script(self, name: str, keys: Sequence[str], arguments: Sequence[Word]) -> bytes:
        """Return what `scripts/NAME.lua` returns."""


class RedisCommands:
    """Commands by redis-py: clusters and TLS."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._scripts: dict[str, Any] = {}

    async def run(self, *commands: Sequence[Word]) -> list[Any]:
        """See `Commands.run`."""
        if len(commands) == 1:
            return [await self._client.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
        async with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return await pipe.execute()

    async def script(self, name: str, keys: Sequence[str], arguments: Sequence[Word]) -> bytes:
        """See `Commands.script`."""
        if name not in self._scripts:
            self._scripts[name] = self._client.register_script(script_text(name))
        return cast("bytes", await self._scripts[name](keys=keys, args=arguments))


class RespCommands:
    """Commands by a pool of `ReplyConnection`s: one engine without TLS."""

    def __init__(self, pool: RespPool) -> None:
        self._pool = pool
        self._scripts: dict[str, tuple[bytes, bytes]] = {}

    async def run(self, *commands: Sequence[Word]) -> list[Any]:
        """See `Commands.run`."""
        encoded = [[_encoded(word) for word in command] for command in commands]
        replies = await self._pool.call(encoded, ())
        for reply in replies:
            if isinstance(reply, refusals.ResponseError):
                raise reply
        return replies

    async def script(self, name: str, keys: Sequence[str], arguments: Sequence[Word]) -> bytes:
        """See `Commands.script`."""
        if name not in self._scripts:
            source = script_text(name).encode()
            digest = hashlib.sha1(source, usedforsecurity=False).hexdigest()
            self._scripts[name] = source, digest.encode()
        text, sha = self._scripts[name]
        rest = [len(keys), *keys, *arguments]
        try:
            (reply,) = await self.run([b"EVALSHA", sha, *rest])
        except refusals.ResponseError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            (reply,) = await self.run([b"EVAL", text, *rest])
        return cast("bytes", reply)


def fields(reply: Any) -> Mapping[bytes, bytes]:
    """Return a hash; redis-py has made a mapping of it already."""
    return reply if isinstance(reply, Mapping) else dict(zip(reply[::2], reply[1::2], strict=True))


def _encoded(word: Word) -> bytes:
    if isinstance(word, bytes):
        return word
    return word.encode() if isinstance(word, str) else b"%d" % word
