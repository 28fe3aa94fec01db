"""The seam between operations and the network: one blocking transport, one for asyncio."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from routereplay.client._http import LONGEST_REFUSAL, Connections, fresh
from routereplay.client._operations import Call, error_of
from routereplay.client._retry import retry_after_s
from routereplay.client.tls import TlsFiles, connection_hint
from routereplay.wire.errors import RouteReplayError, StoreTimeout, StoreUnreachable

_CONNECT_TIMEOUT_S = 5.0
_CLOSED = "this client is closed; make a new one"


class BlockingTransport:
    """Sends calls over `http.client`; bodies land in the memory that the call asks for."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        timeout_s: float,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self._timeout_s = timeout_s
        self._closed = False
        self._connections = Connections(
            base_url,
            headers=_headers(api_key),
            connect_timeout_s=min(timeout_s, _CONNECT_TIMEOUT_S),
            ssl_context=ssl_context or TlsFiles.from_env(os.environ).context(),
        )

    def send(self, call: Call) -> memoryview:
        """Return the body of a good answer, or raise the error that the store named."""
        if self._closed:
            raise RuntimeError(_CLOSED)
        answer = self._connections.exchange(
            call.method,
            f"{call.path}?{urlencode(call.params, doseq=True)}" if call.params else call.path,
            # The time that the store waits comes on top.
            timeout_s=self._timeout_s + call.wait_s,
            body=[call.body] if call.body else (),
            headers=_content_type(call) | _trace(),
            room=call.room or fresh,
        )
        if not 200 <= answer.status < 300:
            error = error_of(answer.status, bytes(answer.body))
            error.retry_after_s = retry_after_s(answer.headers.get("Retry-After"))
            raise error
        return answer.body

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        self._connections.close()


class AsyncTransport:
    """Sends calls over httpx: it costs more CPU a byte, and nothing else here speaks asyncio.

    Bodies are received piece by piece into the memory that the call asks for.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        timeout_s: float,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timeout_s = timeout_s
        # A name and password are neither told nor sent: httpx would put them in the key's place.
        scheme, _, address = base_url.partition("://")
        host, slash, rest = address.partition("/")
        base_url = f"{scheme}://{host.rpartition('@')[2]}{slash}{rest}"
        self._base_url = base_url
        path = base_url.removeprefix("unix://") if base_url.startswith("unix://") else None
        self._http = httpx.AsyncClient(
            base_url="http://routereplay" if path else base_url.rstrip("/"),
            transport=httpx.AsyncHTTPTransport(
                uds=path, verify=ssl_context or TlsFiles.from_env(os.environ).context()
            ),
            # Nothing is compressed: bodies are received as they are.
            headers={"Accept-Encoding": "identity"} | _headers(api_key),
            trust_env=False,
            follow_redirects=False,
        )

    async def send(self, call: Call) -> memoryview:
        """See `BlockingTransport.send`."""
        self._check_loop()
        try:
            async with self._http.stream(**self._options(call)) as response:
                if not response.is_success:
                    refusal = error_of(response.status_code, await _beginning(response))
                    refusal.retry_after_s = retry_after_s(response.headers.get("Retry-After"))
                    raise refusal
                length = response.headers.get("content-length")
                if length is None:
                    return memoryview(await _beginning(response))
                return await _received(response, (call.room or fresh)(int(length)))
        except httpx.TransportError as error:
            raise self._error(error) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _check_loop(self) -> None:
        if self._http.is_closed:
            raise RuntimeError(_CLOSED)
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            msg = (
                "this AsyncRouteStoreClient holds connections of another event loop; make one "
                "in each loop, or use RouteStoreClient, which is safe for threads"
            )
            raise RuntimeError(msg)

    def _options(self, call: Call) -> dict[str, Any]:
        return {
            "method": call.method,
            "url": call.path,
            "params": call.params,
            "content": call.body,
            "headers": _content_type(call) | _trace(),
            "timeout": httpx.Timeout(
                self._timeout_s + call.wait_s, connect=min(self._timeout_s, _CONNECT_TIMEOUT_S)
            ),
        }

    def _error(self, error: httpx.TransportError) -> RouteReplayError:
        url = self._base_url
        if isinstance(error, httpx.TimeoutException):
            msg = f"the route store at {url} did not answer in time ({type(error).__name__})"
            return StoreTimeout(msg, url=url)
        msg = f"no connection to the route store at {url} ({error}). {connection_hint(error, url)}"
        return StoreUnreachable(msg, url=url)


async def _beginning(response: httpx.Response) -> bytes:
    """Return what a refusal says, or an answer without a length: from something else than us."""
    found = bytearray()
    async for piece in response.aiter_raw():
        found += piece
        if len(found) >= LONGEST_REFUSAL:
            break
    return bytes(found[:LONGEST_REFUSAL])


async def _received(response: httpx.Response, view: memoryview) -> memoryview:
    done = 0
    async for piece in response.aiter_raw():
        view[done : done + len(piece)] = piece
        done += len(piece)
    if done != len(view):
        msg = f"the connection ended after {done} of {len(view)} bytes"
        raise httpx.RemoteProtocolError(msg)
    return view


def _headers(api_key: str | None) -> dict[str, str]:
    key = api_key or _key_from_environment()
    return {"Authorization": f"Bearer {key}"} if key else {}


def _content_type(call: Call) -> dict[str, str]:
    return {"Content-Type": "application/json"} if call.body else {}


def _trace() -> dict[str, str]:
    """Return the headers of the caller's OpenTelemetry trace, if he has one."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry import propagate

    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


def _key_from_environment() -> str | None:
    if path := os.environ.get("ROUTEREPLAY_API_KEY_FILE"):
        return Path(path).read_text().strip()
    return os.environ.get("ROUTEREPLAY_API_KEY") or None
