"""What every connection to an engine has: one call at a time, and an end when it breaks."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

from redis import exceptions as refusals

from routereplay.sidecar.watch import Watch
from routereplay.wire.digest import Buffer

Command: TypeAlias = Sequence[Buffer]

Place: TypeAlias = memoryview | None
"""Where one reply's string is received if it has exactly that length, or nowhere."""


class OneCall(asyncio.BaseProtocol, ABC):
    """A connection that is used by one caller at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._replies: list[Any] = []
        self._done: asyncio.Future[list[Any]] | None = None
        self._ends_at: float | None = None
        self._watch: Watch | None = None

    async def call(
        self, commands: Sequence[Command], places: Sequence[Place], ends_at: float | None = None
    ) -> list[Any]:
        """Send commands at once and return their replies, in order; refusals are among them.

        Args:
            commands: what is sent.
            places: where strings go.
            ends_at: until when all replies must be there, by the loop's clock; None: no end.

        Raises:
            TimeoutError: they are not. It is broken then, and so is every later call.
            redis.exceptions.ConnectionError: the same, for another reason.
        """
        if self._transport is None or self._done is not None:
            msg = "the connection is closed or busy"
            raise refusals.ConnectionError(msg)
        loop = asyncio.get_running_loop()
        self._replies = []
        self._done = loop.create_future()
        self._ends_at = ends_at
        if ends_at is not None:
            # A deadline of its own for every call costs more than a short command does.
            self._watch = self._watch or Watch(loop, self._due, self._expired)
            self._watch.start()
        self._send(self._transport, commands, places)
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
        if self._watch is not None:
            self._watch.stop()
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
        if self._watch is not None:
            self._watch.stop()
        self._fail(refusals.ConnectionError(f"the engine closed the connection ({exc})"))

    @abstractmethod
    def _send(
        self, transport: asyncio.Transport, commands: Sequence[Command], places: Sequence[Place]
    ) -> None:
        """Write the commands, and note what is expected."""

    def _due(self) -> float | None:
        return None if self._done is None else self._ends_at

    def _expired(self) -> None:
        self._fail(TimeoutError("the engine did not answer in time"))

    def _succeed(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(self._replies)

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)
