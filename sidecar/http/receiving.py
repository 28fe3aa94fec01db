"""Bodies that are received where they are wanted.

uvicorn copies a body five times on its way to the app: socket to bytes, out of the parser,
onto a bytearray, to bytes again, and into the app's own buffer. The app that knows how long
a body is can ask for the rest of it to be read from the socket into memory of its own.

It is an ASGI extension of a request, `EXTENSION`: `await receive_into(memoryview)`. Where it
is absent the body comes by `receive`, as ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httptools
from starlette.requests import ClientDisconnect

from routereplay.sidecar.http.limits import HttpLimits
from routereplay.sidecar.http.protocol import BoundedProtocol

EXTENSION = "routereplay.receive_into"


class ReceivingProtocol(BoundedProtocol):
    """A connection that offers `EXTENSION` to the requests whose length is announced."""

    def on_headers_complete(self) -> None:
        """Offer it with the request."""
        # An upgrade is not a body, and a client that waits for `100 Continue` waits for
        # `receive`; both are rare, and served as uvicorn serves them.
        if not self.expect_100_continue and not self.parser.should_upgrade():
            self.scope["extensions"] = {EXTENSION: self._receive_into}  # type: ignore[dict-item]
        super().on_headers_complete()

    async def _receive_into(self, body: memoryview) -> None:
        """Fill `body`, which is as long as the announced body of the current request.

        Raises:
            ClientDisconnect: the client left, or was too slow.
        """
        cycle = self.cycle
        early = cycle.body
        cycle.body = bytearray()
        have = len(early)
        body[:have] = early
        if have == len(body):
            return
        if cycle.disconnected or self.transport.is_closing():
            raise ClientDisconnect
        rest = _Rest(self, body[have:])
        self.transport.set_protocol(rest)
        self.flow.resume_reading()
        try:
            await rest.done
        except asyncio.CancelledError:
            self.transport.abort()
            raise

    def count_body(self, nbytes: int) -> None:
        """Note body bytes that did not pass the parser."""
        self._body_bytes += nbytes

    def after_body(self) -> None:
        """Go on with a parser that stands before the next request."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.on_message_complete()


class _Rest(asyncio.BufferedProtocol):
    """Takes the connection's place until the body is there, and not one byte longer."""

    def __init__(self, owner: ReceivingProtocol, room: memoryview) -> None:
        self._owner = owner
        self._room = room
        self.done: asyncio.Future[None] = owner.loop.create_future()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return what is left to fill."""
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        """Note what has come; give the connection back when it is all."""
        self._room = self._room[nbytes:]
        self._owner.count_body(nbytes)
        if not self._room:
            # uvloop keeps the last protocol that had a buffer, and an empty view keeps the body.
            self._room = memoryview(b"")
            self._owner.transport.set_protocol(self._owner)
            self._owner.after_body()
            if not self.done.done():
                self.done.set_result(None)

    def eof_received(self) -> bool | None:
        """Close: what was announced does not come any more."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell both."""
        self._owner.connection_lost(exc)
        if not self.done.done():
            self.done.set_exception(ClientDisconnect())

    def pause_writing(self) -> None:
        """Pass it on."""
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._owner.resume_writing()


def receiving_protocol(limits: HttpLimits, count: Callable[[str], None]) -> type[ReceivingProtocol]:
    """Return the class to give to uvicorn as `http=`."""
    members = {"limits": limits, "count": staticmethod(count)}
    return type("ReceivingProtocol", (ReceivingProtocol,), members)
