"""A connection to Redis or Valkey for short commands with replies of any kind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import hiredis
from redis import exceptions as refusals

from routereplay.sidecar.store.resp import Command, Place, packed


class ReplyConnection(asyncio.Protocol):
    """One connection; used by one caller at a time. Replies are parsed by hiredis."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._wanted = 0
        self._replies: list[Any] = []
        self._done: asyncio.Future[list[Any]] | None = None

    async def call(self, commands: Sequence[Command], places: Sequence[Place]) -> list[Any]:
        """Send commands at once and return their replies, in order; refusals are among them.

        Raises:
            redis.exceptions.ConnectionError: it is broken, and so is every later call.
        """
        if self._transport is None or self._done is not None:
            msg = "the connection is closed or busy"
            raise refusals.ConnectionError(msg)
        self._wanted, self._replies = len(commands), []
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(b"".join(piece for one in commands for piece in packed(one)))
        try:
            return await self._done
        except BaseException:
            # Replies may be on their way that nobody waits for.
            self.abort()
            raise
        finally:
            self._done = None

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's has the methods and not the class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the call that waits."""
        self._transport = None
        self._fail(refusals.ConnectionError(f"the engine closed the connection ({exc})"))

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, hiredis.ReplyError):
                    reply = refusals.ResponseError(str(reply))
                self._replies.append(reply)
        except hiredis.ProtocolError as error:
            self._fail(refusals.InvalidResponse(str(error)))
            self.abort()
            return
        if len(self._replies) == self._wanted and self._done is not None and not self._done.done():
            self._done.set_result(self._replies)

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)
