"""Short commands of the index: by redis-py wherever it is needed, and straight where not.

redis-py spends several times the Python on a command that a connection of our own does; a
request of a few hundred bytes is ten commands, and little else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import redis.asyncio
from redis import exceptions as refusals

from routereplay.sidecar.store.one_call import Command
from routereplay.sidecar.store.redis_engine import script_text
from routereplay.sidecar.store.resp_pool import RespPool

Word: TypeAlias = str | bytes | int


class Script(NamedTuple):
    """A call of `scripts/NAME.lua`."""

    name: str
    keys: Sequence[str]
    arguments: Sequence[Word]


class Commands(Protocol):
    """Sends commands to an engine; raises what redis-py raises."""

    together: bool
    """Whether a script may use keys of any tag, and many scripts are one round trip."""

    async def run(self, *commands: Sequence[Word]) -> list[Any]:
        """Return the replies to commands that are sent at once, in order."""

    async def script(self, name: str, keys: Sequence[str], arguments: Sequence[Word]) -> Any:
        """Return what `scripts/NAME.lua` returns."""

    async def scripts(self, calls: Sequence[Script]) -> list[Any]:
        """Return what scripts return that run in order; nothing is undone if one is refused."""


class RedisCommands:
    """Commands by redis-py: clusters and TLS."""

    together = False

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

    async def script(self, name: str, keys: Sequence[str], arguments: Sequence[Word]) -> Any:
        """See `Commands.script`."""
        if name not in self._scripts:
            self._scripts[name] = self._client.register_script(script_text(name))
        return await self._scripts[name](keys=keys, args=arguments)

    async def scripts(self, calls: Sequence[Script]) -> list[Any]:
        """See `Commands.scripts`."""
        # One by one: their keys may be of many nodes.
        return [await self.script(*call) for call in calls]


class RespCommands:
    """Commands by a pool of `ReplyConnection`s: one engine without TLS."""

    together = True

    def __init__(self, pool: RespPool) -> None:
        self._pool = pool
        self._scripts: dict[str, tuple[bytes, bytes]] = {}

    async def run(self, *commands: Sequence[Word]) -> list[Any]:
        """See `Commands.run`."""
        replies = await self._send(commands)
        for reply in replies:
            if isinstance(reply, refusals.ResponseError):
                raise reply
        return replies

    async def script(self, name: str, keys: Sequence[str], arguments: Sequence[Word]) -> Any:
        """See `Commands.script`."""
        (reply,) = await self.scripts([Script(name, keys, arguments)])
        return reply

    async def scripts(self, calls: Sequence[Script]) -> list[Any]:
        """See `Commands.scripts`."""
        rest = [[len(call.keys), *call.keys, *call.arguments] for call in calls]
        known = [self._script(call.name) for call in calls]
        replies = await self._send(
            [[b"EVALSHA", sha, *words] for (_, sha), words in zip(known, rest, strict=True)]
        )
        for number, reply in enumerate(replies):
            if isinstance(reply, refusals.ResponseError):
                if not str(reply).startswith("NOSCRIPT"):
                    raise reply
                (replies[number],) = await self.run([b"EVAL", known[number][0], *rest[number]])
        return replies

    async def _send(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        # The connections of this pool take text and numbers too.
        return await self._pool.call(cast("Sequence[Command]", commands), ())

    def _script(self, name: str) -> tuple[bytes, bytes]:
        """Return a script's text and the digest that the engine knows it by."""
        if name not in self._scripts:
            source = script_text(name).encode()
            digest = hashlib.sha1(source, usedforsecurity=False).hexdigest()
            self._scripts[name] = source, digest.encode()
        return self._scripts[name]


def fields(reply: Any) -> Mapping[bytes, bytes]:
    """Return a hash; redis-py has made a mapping of it already."""
    return reply if isinstance(reply, Mapping) else dict(zip(reply[::2], reply[1::2], strict=True))
