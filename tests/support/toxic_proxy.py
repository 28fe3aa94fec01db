"""A TCP proxy that damages what passes through it, or answers HTTP in its place, as told."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Toxics:
    """What happens to bytes; offsets count from the start of each connection."""

    latency_s: float = 0.0
    """Before each piece, both ways."""
    bytes_per_s: float = 0.0
    """Of each way of each connection; 0 is unlimited."""
    slice_bytes: int = 65536
    """Longest piece that is passed on at once."""
    cut_request_at: int = -1
    """Reset the connection after this many bytes of requests."""
    cut_response_at: int = -1
    """Close the connection after this many bytes of responses."""
    reset_response_at: int = -1
    """Reset the connection after this many bytes of responses."""
    flip_request_at: int = -1
    """Flip one bit of this byte of the requests."""
    flip_response_at: int = -1
    swallow_responses: bool = False
    """Let requests through and close instead of the first byte of a response."""
    refuse: bool = False
    """Reset new connections at once."""
    hang: bool = False
    """Accept connections and pass nothing on."""
    answer: Callable[[bytes], bytes | None] | None = None
    """Given the head of an HTTP request, the whole answer; None lets it through."""
    once: bool = False
    """Only the first connection that an offset or a swallow strikes is damaged."""


class ToxicProxy:
    """`with ToxicProxy(port) as proxy: proxy.url`; change `proxy.toxics` at any time.

    Args:
        target_port: where undamaged bytes go, on 127.0.0.1.
        host: where it listens.
        port: where it listens; 0 is a free one.
    """

    def __init__(self, target_port: int, host: str = "127.0.0.1", port: int = 0) -> None:
        self.target_port = target_port
        self.host = host
        self.port = port
        self.toxics = Toxics()
        self.connections = 0
        """Connections that were accepted."""
        self.struck = 0
        """Connections that an offset or a swallow ended or changed."""
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> ToxicProxy:
        self._thread.start()
        start = asyncio.start_server(self._serve, self.host, self.port)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{self.host}:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def drop_connections(self) -> None:
        """Reset every open connection."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._tasks])

    async def _stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self.connections += 1
        target = None
        try:
            if self.toxics.refuse:
                return _reset(writer)
            while self.toxics.hang:
                await asyncio.sleep(0.02)
            begun = await self._answered(reader, writer)
            upstream, target = await asyncio.open_connection("127.0.0.1", self.target_port)
            target.write(begun)
            ways = [
                asyncio.ensure_future(self._pass(reader, target, writer, "request")),
                asyncio.ensure_future(self._pass(upstream, writer, writer, "response")),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except asyncio.CancelledError:
            _reset(writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, target):
                if end is not None:
                    with contextlib.suppress(OSError):
                        end.close()

    async def _answered(self, reader, writer) -> bytes:
        """Answer requests until one is to be let through; return what was read of that one."""
        while self.toxics.answer is not None:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            answer = self.toxics.answer and self.toxics.answer(head)
            if answer is None:
                return head + body
            writer.write(answer)
            await writer.drain()
        return b""

    async def _pass(self, source, sink, client, way: str) -> None:
        passed = 0
        while piece := await source.read(max(1, self.toxics.slice_bytes)):
            toxics = self.toxics
            while toxics.hang:
                await asyncio.sleep(0.02)
                toxics = self.toxics
            if toxics.latency_s:
                await asyncio.sleep(toxics.latency_s)
            if toxics.bytes_per_s:
                await asyncio.sleep(len(piece) / toxics.bytes_per_s)
            if way == "response" and toxics.swallow_responses and self._strikes():
                return
            piece = self._flipped(piece, passed, getattr(toxics, f"flip_{way}_at"))
            cut, hard = _cut_of(toxics, way)
            if 0 <= cut < passed + len(piece) and self._strikes():
                sink.write(piece[: max(0, cut - passed)])
                with contextlib.suppress(OSError):
                    await sink.drain()
                if hard:
                    _reset(client)
                return
            passed += len(piece)
            sink.write(piece)
            await sink.drain()
        # Half a connection that ended: the other way may still have something to say.
        if way == "request":
            with contextlib.suppress(OSError):
                sink.write_eof()
            await asyncio.sleep(30)

    def _strikes(self) -> bool:
        if self.toxics.once and self.struck:
            return False
        self.struck += 1
        return True

    def _flipped(self, piece: bytes, passed: int, at: int) -> bytes:
        if not passed <= at < passed + len(piece) or not self._strikes():
            return piece
        damaged = bytearray(piece)
        damaged[at - passed] ^= 0x10
        return bytes(damaged)


def _cut_of(toxics: Toxics, way: str) -> tuple[int, bool]:
    if way == "request":
        return toxics.cut_request_at, True
    if toxics.reset_response_at >= 0:
        return toxics.reset_response_at, True
    return toxics.cut_response_at, False


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST instead of a FIN."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def http_answer(status: int, body: bytes = b"{}", **headers: object) -> bytes:
    """Return a whole HTTP answer; `Retry_After=7` becomes the header Retry-After."""
    lines = [f"HTTP/1.1 {status} Because", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
