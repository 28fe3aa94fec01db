"""A connection to Redis or Valkey for short commands with replies of any kind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import hiredis
from redis import exceptions as refusals

from routereplay.sidecar.store.one_call import Command, OneCall, Place
from routereplay.sidecar.store.resp import packed


class ReplyConnection(OneCall, asyncio.Protocol):
    """One connection. Replies are parsed by hiredis."""

    def __init__(self) -> None:
        super().__init__()
        self._reader = hiredis.Reader()
        self._wanted = 0

    def _send(
        self, transport: asyncio.Transport, commands: Sequence[Command], _: Sequence[Place]
    ) -> None:
        self._wanted = len(commands)
        transport.write(b"".join(piece for one in commands for piece in packed(one)))

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
