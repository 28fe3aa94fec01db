"""Answers whose head and body leave together.

uvicorn writes them one by one, and each wakes the client for itself: for a short answer that is a
fifth of what it costs.
"""

from __future__ import annotations

import asyncio

from routereplay.wire.digest import Buffer


class JoiningTransport:
    """Stands before the transport for one answer, and holds its head back until the body follows.

    Not for longer than the current turn of the event loop: a body that takes its time does not
    keep its head.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: Buffer | None = None
        self._began = False

    def write(self, data: Buffer) -> None:
        """Write the head with what follows it, and all else at once."""
        if not self._began:
            self._began = True
            self._held = data
            self._loop.call_soon(self._flush)
        elif self._held is not None:
            held, self._held = self._held, None
            self._transport.writelines([held, data])
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection once all is sent."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Return whether the connection is closed, or about to be."""
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.write(held)
