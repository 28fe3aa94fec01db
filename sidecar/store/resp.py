"""A connection to Redis or Valkey that moves values between sockets and given memory.

redis-py reads a long value in pieces of 64 KB, grows a buffer with them and copies it to
bytes: 3 to 6 times the CPU of `recv_into`. Here a value is received where it is wanted and
sent from where it is. Three kinds of reply are all that is spoken: status, number, string.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from redis import exceptions as refusals

from routereplay.sidecar.store.one_call import Command, OneCall, Place
from routereplay.wire.digest import Buffer

Reply: TypeAlias = bytes | int | refusals.ResponseError | None
"""A status, a number, the length of a string, no string, or what the engine refuses."""

_HEAD_BYTES = 16 * 1024
_LINE_BYTES = 8 * 1024


class RespConnection(OneCall, asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self) -> None:
        super().__init__()
        self._head = bytearray(_HEAD_BYTES)
        self._have = 0
        self._expected: deque[Place] = deque()
        self._body: memoryview | None = None
        """What is left to fill of the string that is being received."""
        self._skip = 0
        """Bytes to throw away: the end of a string, or one that does not fit."""

    def _send(
        self, transport: asyncio.Transport, commands: Sequence[Command], places: Sequence[Place]
    ) -> None:
        self._expected.extend(places)
        transport.writelines([piece for command in commands for piece in packed(command)])

    # The protocol.

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go: the wanted memory, if a string is coming."""
        if self._body is not None and len(self._body) > 0:
            return self._body
        return memoryview(self._head)[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has come."""
        if self._body is not None and len(self._body) > 0:
            self._body = self._body[nbytes:]
            return
        self._have += nbytes
        try:
            self._parse()
        except refusals.InvalidResponse as error:
            self._fail(error)
            self.abort()

    def _parse(self) -> None:
        at = 0
        while at < self._have:
            if self._body is not None:
                at = self._fill(at)
                continue
            if self._skip:
                step = min(self._skip, self._have - at)
                self._skip -= step
                at += step
                continue
            end = self._head.find(b"\r\n", at, self._have)
            if end < 0:
                break
            self._line(bytes(self._head[at:end]))
            at = end + 2
        if self._body is not None and len(self._body) == 0:
            self._body = None
        self._head[: self._have - at] = self._head[at : self._have]
        self._have -= at
        if self._have > _LINE_BYTES:
            msg = "the engine sent a line without an end"
            raise refusals.InvalidResponse(msg)
        self._finish()

    def _fill(self, at: int) -> int:
        assert self._body is not None
        step = min(len(self._body), self._have - at)
        self._body[:step] = memoryview(self._head)[at : at + step]
        self._body = self._body[step:] if step < len(self._body) else None
        return at + step

    def _line(self, line: bytes) -> None:
        if not self._expected:
            msg = "the engine sent a reply that nobody asked for"
            raise refusals.InvalidResponse(msg)
        kind, rest = line[:1], line[1:]
        into = self._expected.popleft()
        reply: Reply
        if kind == b"$":
            length = int(rest)
            reply = None if length < 0 else length
            if length >= 0:
                self._skip = 2
                if into is not None and len(into) == length:
                    self._body = into if length else None
                else:
                    self._skip += length
        elif kind == b"+":
            reply = rest
        elif kind == b":":
            reply = int(rest)
        elif kind == b"-":
            reply = refusals.ResponseError(rest.decode("utf-8", "replace"))
        else:
            msg = f"the engine sent a reply of kind {kind!r}"
            raise refusals.InvalidResponse(msg)
        self._replies.append(reply)

    def _finish(self) -> None:
        is_whole = not self._expected and self._body is None and not self._skip
        if is_whole:
            self._succeed()


def packed(command: Command) -> list[Buffer]:
    """Return the buffers of one command; long arguments are passed on, not copied."""
    head = bytearray(b"*%d\r\n" % len(command))
    pieces: list[Buffer] = []
    for argument in command:
        nbytes = memoryview(argument).nbytes
        head += b"$%d\r\n" % nbytes
        if nbytes > _LINE_BYTES:
            pieces += [bytes(head), argument]
            head = bytearray()
        else:
            head += argument
        head += b"\r\n"
    return [*pieces, bytes(head)]
