"""HTTP/1.1 under uvicorn, with the limits on time and size that uvicorn lacks.

Without them a client that connects and is silent, sends a header a minute, stops in the
middle of a body, or reads nothing of its answer holds a connection, its buffers and a
place among the bodies for as long as it likes (uvicorn 0.54, httptools and h11 alike).

Body bytes arrive in `on_body`, called by the parser with each piece; `receiving` takes them
from the socket instead, and counts them in `_body_bytes` for the deadlines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from routereplay.sidecar.http.answers import closing_answer
from routereplay.sidecar.http.joining import JoiningTransport
from routereplay.sidecar.http.limits import HttpLimits
from routereplay.sidecar.watch import Watch
from routereplay.wire.errors import (
    BadRequest,
    HeadersTooLarge,
    RequestTooSlow,
    RouteReplayError,
    StoreUnavailable,
)

CLOSED_FOR = ("idle", "head", "body", "response", "headers", "malformed", "unwanted", "connections")
"""Why a connection may be ended early; the values of the metric's label."""


class _Refused(Exception):
    """Stops the parser; what to say of it is on the protocol."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection of a client that is given no more than `limits`."""

    limits: ClassVar[HttpLimits] = HttpLimits()
    count: ClassVar[Callable[[str], None]]
    """Told of every connection that is ended early, with one of `CLOSED_FOR`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._receiving: Literal["head", "body", "nothing"] = "head"
        self._refusal: tuple[RouteReplayError, str] | None = None
        self._head_from = 0.0
        self._head_began = False
        self._head_bytes = 0
        self._head_pending = 0
        self._head_ended = False
        self._body_from = 0.0
        self._body_bytes = 0
        self._unwanted = 0
        # Of the response that is being sent: seconds without room in the socket, bytes
        # that went out in them, and since when and with how much buffered it waits now.
        self._stalled_s = 0.0
        self._drained = 0
        self._waiting: tuple[float, int] | None = None
        self._in = Watch(self.loop, self._receive_due, self._receive_expired)
        self._out = Watch(self.loop, self._send_due, self._send_expired)

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, or turn the client away."""
        super().connection_made(transport)
        self._head_from = self.loop.time()
        if len(self.connections) > self.limits.max_connections:
            msg = f"{self.limits.max_connections} connections are open, and no more are taken"
            self._end(StoreUnavailable(msg), "connections")
            return
        self._in.start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._in.stop()
        self._out.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, and set the deadline for what must follow."""
        if self.transport.is_closing():
            return
        if self._receiving == "nothing":
            self._receiving = "head"
            self._head_from, self._head_began = self.loop.time(), False
        if self._receiving == "head" and not self._head_began:
            self._head_from, self._head_began = self.loop.time(), True
        # The parser keeps a header to itself until it is whole.
        self._head_pending += len(data) if self._receiving == "head" else 0
        self._head_ended = False
        super().data_received(data)
        if self._head_ended:
            self._head_pending = 0
        elif self._head_pending > self.limits.head_bytes and not self.transport.is_closing():
            self._end(self._too_long(), "headers")
        self._in.start()

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with the request, and close."""
        error, why = self._refusal or (
            BadRequest(f"{msg} Its lines or lengths are malformed."),
            "malformed",
        )
        self._end(error, why)

    # What the parser finds.

    def on_message_begin(self) -> None:
        """Note where a request begins."""
        self._receiving = "head"
        self._head_from, self._head_began = self.loop.time(), True
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the request line."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer."""
        self._count_head(len(name) + len(value) + 4)
        super().on_header(name, value)
        if len(self.headers) > self.limits.head_fields:
            self._refuse(self._too_long(), "headers")

    def on_headers_complete(self) -> None:
        """Start the request, and the clock of its body."""
        self._receiving, self._head_ended = "body", True
        self._body_from, self._body_bytes, self._unwanted = self.loop.time(), 0, 0
        self._stalled_s, self._drained = 0.0, 0
        if self._waiting is not None:
            self._waiting = self.loop.time(), self.transport.get_write_buffer_size()
        super().on_headers_complete()
        self.cycle.transport = JoiningTransport(self.transport, self.loop)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body; of one that was answered already, not too much."""
        self._body_bytes += len(body)
        if self.cycle.response_complete:
            self._unwanted += len(body)
            if self._unwanted > self.limits.unwanted_bytes:
                msg = "the request was answered before its body; the rest of it is not wanted"
                self._refuse(BadRequest(msg), "unwanted")
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that nothing of this request is missing."""
        self._receiving, self._head_began = "nothing", False
        super().on_message_complete()

    # What the transport and the app tell.

    def pause_writing(self) -> None:
        """Begin to count how long the client takes nothing."""
        super().pause_writing()
        self._wait_for_client()

    def resume_writing(self) -> None:
        """Add up what it took and how long that was."""
        super().resume_writing()
        self._note_progress()
        self._waiting = None

    def on_response_complete(self) -> None:
        """Watch what is left in the buffer: the app is done, the client may not be."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._wait_for_client()

    # Deadlines.

    def _receive_due(self) -> float | None:
        now = self.loop.time()
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._receiving == "head":
            # An answer is on its way; a second request that comes slowly may not end it.
            return (now if answering else self._head_from) + self.limits.head_s
        if self._receiving == "body":
            if self.flow.read_paused:
                # We do not read: the client cannot be blamed.
                self._body_from = now - self._body_bytes / self.limits.min_bytes_per_s
            return self.limits.due(self._body_from, self._body_bytes)
        return None

    def _receive_expired(self) -> None:
        if self.transport.is_closing():
            return
        if self._receiving == "head":
            if not self._head_began:
                type(self).count("idle")
                self.transport.close()
                return
            msg = f"the headers did not come within {self.limits.head_s:g} s"
            self._end(RequestTooSlow(msg), "head")
            return
        msg = (
            f"{self._body_bytes} bytes of the body came in {self.loop.time() - self._body_from:.0f}"
            f" s; at least {self.limits.min_bytes_per_s:g} bytes a second are expected"
        )
        self._end(RequestTooSlow(msg), "body")

    def _send_due(self) -> float | None:
        self._note_progress()
        if self._waiting is None:
            return None
        # `_stalled_s` seconds of waiting are behind it.
        return self.limits.due(self._waiting[0] - self._stalled_s, self._drained)

    def _send_expired(self) -> None:
        type(self).count("response")
        self.transport.abort()

    def _wait_for_client(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.time(), self.transport.get_write_buffer_size()
        self._out.start()

    def _note_progress(self) -> None:
        if self._waiting is None:
            return
        since, buffered = self._waiting
        now, left = self.loop.time(), self.transport.get_write_buffer_size()
        self._stalled_s += now - since
        self._drained += max(buffered - left, 0)
        self._waiting = (now, left) if left else None

    # Refusals.

    def _count_head(self, nbytes: int) -> None:
        self._head_bytes += nbytes
        if self._head_bytes > self.limits.head_bytes:
            self._refuse(self._too_long(), "headers")

    def _too_long(self) -> HeadersTooLarge:
        msg = (
            f"request line and headers are over {self.limits.head_bytes} bytes or "
            f"{self.limits.head_fields} headers"
        )
        return HeadersTooLarge(msg)

    def _refuse(self, error: RouteReplayError, why: str) -> None:
        """Stop the parser, which leads to `send_400_response`."""
        self._refusal = error, why
        raise _Refused

    def _end(self, error: RouteReplayError, why: str) -> None:
        """Answer with `error` if nothing was answered yet, and close."""
        type(self).count(why)
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if answering and (cycle.response_started or self.pipeline or self._receiving == "head"):
            # The client would take this for the answer, or a part of it, to another request
            # than the one that is at fault.
            self.transport.abort()
            return
        if cycle is not None and cycle.response_complete and self._receiving == "body":
            # Answered already: on a kept connection a second answer would be the next request's.
            self.transport.close()
            return
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(closing_answer(error))
        self.transport.close()
        self._wait_for_client()
