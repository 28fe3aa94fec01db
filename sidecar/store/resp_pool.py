"""Connections to one engine for values, opened as they are needed and kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis import exceptions as refusals
from redis.asyncio.connection import parse_url

from routereplay.sidecar.store.one_call import Command, Place
from routereplay.sidecar.store.resp import RespConnection
from routereplay.sidecar.store.resp_replies import ReplyConnection

SCHEMES = ("redis://", "unix://")
"""Addresses that can be spoken to; TLS and clusters are redis-py's."""


class RespPool:
    """Calls commands on one engine; raises what redis-py raises.

    Args:
        url: `redis://` or `unix://`, with user, password and db as redis-py reads them.
        timeout_s: for connecting, and for all replies of one call.
        connections: at most; a call beyond waits for its turn. Few, as an engine keeps for
            each a buffer as long as the longest value that it sent.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        connections: int,
        kind: type[RespConnection] | type[ReplyConnection] = RespConnection,
    ) -> None:
        self._kind: Any = kind
        self._options: dict[str, Any] = dict(parse_url(url))
        self._timeout_s = timeout_s
        self._idle: list[Any] = []
        self._turn = asyncio.Semaphore(connections)

    async def call(self, commands: Sequence[Command], places: Sequence[Place]) -> list[Any]:
        """Send commands at once and return their replies; strings are received into `places`.

        Commands that may be repeated only: they are, once, if an idle connection was closed
        by the engine meanwhile.
        """
        # One deadline for a turn, a connection and the replies: a caller that waits
        # behind others that wait is told no later than they are.
        ends_at = asyncio.get_running_loop().time() + self._timeout_s
        try:
            if self._turn.locked():
                async with asyncio.timeout_at(ends_at):
                    await self._turn.acquire()
            else:
                await self._turn.acquire()
            try:
                return await self._call(commands, places, ends_at)
            finally:
                self._turn.release()
        except TimeoutError as error:
            msg = f"no answer from the engine within {self._timeout_s:g} s"
            raise refusals.TimeoutError(msg) from error

    async def _call(
        self, commands: Sequence[Command], places: Sequence[Place], ends_at: float
    ) -> list[Any]:
        while True:
            connection = self._reused()
            is_fresh = connection is None
            if connection is None:
                async with asyncio.timeout_at(ends_at):
                    connection = await self._open()
            try:
                replies = await connection.call(commands, places, ends_at)
            except refusals.ConnectionError:
                if is_fresh:
                    raise
                continue
            if any(_is_read_only(reply) for reply in replies):
                # It has become a replica: the address may lead to another node by now.
                connection.abort()
                self.close()
                if not is_fresh:
                    continue
            else:
                self._idle.append(connection)
            found: list[Any] = replies
            return found

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().abort()

    def _reused(self) -> Any | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _open(self) -> Any:
        loop, options = asyncio.get_running_loop(), self._options
        try:
            if path := options.get("path"):
                _, connection = await loop.create_unix_connection(self._kind, path)
            else:
                host, port = options.get("host", "localhost"), options.get("port", 6379)
                _, connection = await loop.create_connection(self._kind, host, port)
        except OSError as error:
            msg = f"no connection to the engine: {error}"
            raise refusals.ConnectionError(msg) from error
        hello = self._hello()
        replies = await connection.call(hello, [None] * len(hello)) if hello else []
        for reply in replies:
            if isinstance(reply, refusals.ResponseError):
                connection.abort()
                raise reply
        return connection

    def _hello(self) -> list[Command]:
        options = self._options
        commands: list[Command] = []
        if password := options.get("password"):
            user = [str(options["username"]).encode()] if options.get("username") else []
            commands.append([b"AUTH", *user, str(password).encode()])
        if db := options.get("db"):
            commands.append([b"SELECT", str(db).encode()])
        return commands


def _is_read_only(reply: object) -> bool:
    return isinstance(reply, refusals.ResponseError) and str(reply).startswith("READONLY")
