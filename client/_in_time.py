"""Answers that are whole within a time, or fail: `http.client` has only a limit on silence."""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Callable
from typing import Any


class _InTime(io.RawIOBase):
    """What a socket receives until a moment; each read waits for `timeout_s` at most."""

    def __init__(self, connection: socket.socket, ends_at: float, timeout_s: float) -> None:
        self._connection = connection
        self._raw = connection.makefile("rb", buffering=0)
        self._ends_at = ends_at
        self._timeout_s = timeout_s

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, into: Any) -> int | None:
        """Receive into memory, or raise `TimeoutError`."""
        left = self._ends_at - time.monotonic()
        if left <= 0:
            msg = "its answer drips and does not end"
            raise TimeoutError(msg)
        self._connection.settimeout(min(left, self._timeout_s))
        return self._raw.readinto(into)

    def close(self) -> None:
        """Let go of the socket."""
        self._raw.close()
        super().close()


class _Socket:
    """What a response takes for its socket."""

    def __init__(self, connection: socket.socket, limit_s: float, timeout_s: float) -> None:
        self._connection = connection
        self._limit_s = limit_s
        self._timeout_s = timeout_s

    def makefile(self, _: str) -> io.BufferedReader:
        """Return what is received from now on, within the limit."""
        ends_at = time.monotonic() + self._limit_s
        return io.BufferedReader(_InTime(self._connection, ends_at, self._timeout_s))


def response_within(
    answer_s: float | None, timeout_s: float
) -> Callable[..., http.client.HTTPResponse]:
    """Return what makes responses that are whole within `answer_s`, or fail.

    A server that sends a header a second is never silent, and would hold us for hours.
    None is no limit.
    """
    if answer_s is None:
        return http.client.HTTPResponse
    limit_s = answer_s

    def make(connection: socket.socket, *args: Any, **options: Any) -> http.client.HTTPResponse:
        limited = _Socket(connection, limit_s, timeout_s)
        return http.client.HTTPResponse(limited, *args, **options)  # type: ignore[arg-type]

    return make
