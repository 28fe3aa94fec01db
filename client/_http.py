"""Keep-alive HTTP/1.1 connections whose bodies land in the memory they are meant for.

The standard library's `http.client` under a small pool: it reads a body with `recv_into`,
where httpx joins pieces of 64 KB and costs several times the CPU a byte. TCP, TLS and unix
sockets; no proxies, no redirects: routes and keys go where they were sent.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np

from routereplay.client._in_time import response_within
from routereplay.client.tls import connection_hint
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import StoreTimeout, StoreUnreachable

Room: TypeAlias = Callable[[int], memoryview]
"""Returns writable memory of a body's length; may raise to refuse it."""

_JOIN_BYTES = 32 * 1024
_WHOLE_BYTES = 128 * 1024
LONGEST_REFUSAL = 1024 * 1024
"""Bytes that are read of an answer that is not good, or has no length."""


class Answer(NamedTuple):
    """Status, headers and body of one exchange."""

    status: int
    headers: http.client.HTTPMessage
    body: memoryview


def fresh(nbytes: int) -> memoryview:
    """Return new memory; not zeroed, as it is about to be filled."""
    return np.empty(nbytes, np.uint8).data


class Connections:
    """Connections to one server; any number of threads may exchange at a time.

    Args:
        base_url: `http://host:port`, `https://host:port` or `unix:///path/to/socket`.
        headers: sent with every request.
        connect_timeout_s: for a new connection.
        ssl_context: for https; the system's certificate authorities without one.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        connect_timeout_s: float = 5.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._parts = urlsplit(base_url)
        self._headers = dict(headers or {})
        self._connect_timeout_s = connect_timeout_s
        self._ssl_context = ssl_context
        self._idle: deque[_Head] = deque()
        self._process = os.getpid()
        parts = self._parts
        if parts.scheme not in ("http", "https", "unix") or not (parts.hostname or parts.path):
            msg = (
                f"{base_url!r} is no address of a store; expected http://host:port, "
                "https://host:port or unix:///path/to/socket"
            )
            raise ValueError(msg)
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        """The address without credentials."""

    def exchange(
        self,
        method: str,
        target: str,
        *,
        timeout_s: float,
        body: Sequence[Buffer] = (),
        headers: Mapping[str, str] | None = None,
        room: Room = fresh,
        answer_s: float | None = None,
    ) -> Answer:
        """Send a request and receive its answer; a good answer's body is received into `room`.

        An idle connection that the server has closed meanwhile is replaced once, so only
        requests that may be repeated are to be sent.

        Args:
            method, target, body, headers: the request; `body` is sent from where it is.
            timeout_s: longest silence, both ways.
            room: memory for the answer.
            answer_s: longest time for all of the answer, head and body.

        Raises:
            StoreTimeout: nothing was sent or received for `timeout_s`, or `answer_s` is over.
            StoreUnreachable: no connection, or it broke.
        """
        while True:
            connection, is_reused = self._take()
            try:
                limits = timeout_s, answer_s
                response = self._ask(connection, method, target, limits, body, headers)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if is_reused and not isinstance(error, TimeoutError):
                    continue
                raise self._error(error) from error
            try:
                answer = Answer(response.status, response.headers, _body(response, room))
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                raise self._error(error) from error
            except BaseException:
                connection.close()
                raise
            if body and not 200 <= answer.status < 300:
                # It may be answered before its end, and what the server says of the rest would
                # be taken for the answer to the next request.
                connection.close()
            else:
                self._give(connection, response)
            return answer

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> tuple[_Head, bool]:
        if self._process != os.getpid():
            # Forked: they are the parent's, and an answer on one of them may be for him.
            self._idle, self._process = deque(), os.getpid()
        with contextlib.suppress(IndexError):
            return self._idle.pop(), True
        return self._new(), False

    def _give(self, connection: _Head, response: http.client.HTTPResponse) -> None:
        if response.will_close or not response.isclosed():
            connection.close()
        else:
            self._idle.append(connection)

    def _new(self) -> _Head:
        parts = self._parts
        if parts.scheme == "unix":
            return _UnixConnection(unquote(parts.path), self._connect_timeout_s)
        host = parts.hostname or ""
        if parts.scheme == "http":
            return _Head(host, parts.port, timeout=self._connect_timeout_s)
        return _TlsConnection(
            host, parts.port, timeout=self._connect_timeout_s, context=self._ssl_context
        )

    def _ask(
        self,
        connection: _Head,
        method: str,
        target: str,
        limits: tuple[float, float | None],
        body: Sequence[Buffer],
        headers: Mapping[str, str] | None,
    ) -> http.client.HTTPResponse:
        timeout_s, answer_s = limits
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(timeout_s)
        prefix = "" if self._parts.scheme == "unix" else self._parts.path.rstrip("/")
        connection.putrequest(method, prefix + target, skip_accept_encoding=True)
        for name, value in {**self._headers, **(headers or {})}.items():
            connection.putheader(name, value)
        if body:
            connection.putheader("Content-Length", str(sum(memoryview(p).nbytes for p in body)))
        connection.endheaders()
        # A server that refuses a body may answer and close before it has read it all.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in _joined([connection.taken_head(), *body]):
                connection.sock.sendall(piece)
        # Called as the class would be.
        connection.response_class = response_within(answer_s, timeout_s)  # type: ignore[assignment]
        return connection.getresponse()

    def _error(self, error: Exception) -> StoreTimeout | StoreUnreachable:
        if isinstance(error, TimeoutError):
            msg = f"the route store at {self.name} did not answer in time ({error})"
            return StoreTimeout(msg, url=self.name)
        msg = (
            f"no connection to the route store at {self.name} "
            f"({type(error).__name__}: {error}). {connection_hint(error, self.name)}"
        )
        return StoreUnreachable(msg, url=self.name)


class _Head(http.client.HTTPConnection):
    """Keeps the head of a request for who sends it with the body: each packet wakes the server."""

    _held = b""

    def send(self, data: Any) -> None:
        """Keep it."""
        self._held += data

    def taken_head(self) -> bytes:
        """Return what was kept, once."""
        held, self._held = self._held, b""
        return held


class _TlsConnection(_Head, http.client.HTTPSConnection):
    pass


class _UnixConnection(_Head):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("routereplay", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _body(response: http.client.HTTPResponse, room: Room) -> memoryview:
    length = response.length
    if length is None:
        # Chunked, or until the end: from something that is not the store.
        return memoryview(response.read(LONGEST_REFUSAL))
    # A refusal is read whatever room there is: it says why.
    is_good = 200 <= response.status < 300
    view = room(length) if is_good else fresh(min(length, LONGEST_REFUSAL))
    done = 0
    while done < len(view):
        got = response.readinto(view[done:])
        if not got:
            msg = f"the connection ended after {done} of {length} bytes"
            raise http.client.HTTPException(msg)
        done += got
    if not length:
        response.read()
    return view


def _joined(parts: Sequence[Buffer]) -> list[Buffer]:
    """Return the parts with small neighbours joined: a call of the kernel each would cost more."""
    if sum(memoryview(part).nbytes for part in parts) <= _WHOLE_BYTES:
        return [b"".join(parts)]
    joined: list[Buffer] = []
    small: list[Buffer] = []
    for part in parts:
        if memoryview(part).nbytes < _JOIN_BYTES:
            small.append(part)
            continue
        if small:
            joined.append(b"".join(small))
            small = []
        joined.append(part)
    if small:
        joined.append(b"".join(small))
    return joined
