"""A connection to Redis or Valkey for short commands with replies of any kind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import hiredis
from redis import exceptions as refusals

from routereplay.sidecar.store.one_call import Command, OneCall, Place


class ReplyConnection(OneCall, asyncio.Protocol):
    """One connection. Commands, of bytes, text and numbers, and replies are hiredis's work."""

    def __init__(self) -> None:
        super().__init__()
        self._reader = hiredis.Reader()
        self._wanted = 0

    def _send(
        self, transport: asyncio.Transport, commands: Sequence[Command], _: Sequence[Place]
    ) -> None:
        self._wanted = len(commands)
        # Its stub takes tuples of one word only.
        packed = [hiredis.pack_command(tuple(one)) for one in commands]  # type: ignore[arg-type]
        transport.write(b"".join(packed))

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
        if len(self._replies) == self._wanted:
            self._succeed()
