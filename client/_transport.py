"""The seam between operations and the network; httpx is named here and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx

from routereplay.client._operations import Call, error_of
from routereplay.wire.errors import RouteReplayError, StoreTimeout, StoreUnreachable


def client_options(base_url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """Return what both httpx clients are built with.

    Proxies, netrc and redirects are off: routes and keys go where they were sent.
    """
    key = api_key or _key_from_environment()
    return {
        "base_url": base_url.rstrip("/"),
        "headers": {"authorization": f"Bearer {key}"} if key else {},
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, 5.0)),
        "trust_env": False,
        "follow_redirects": False,
    }


def request_options(call: Call, timeout_s: float) -> dict[str, Any]:
    """Return the arguments of one httpx request; the time the store waits comes on top."""
    return {
        "method": call.method,
        "url": call.path,
        "params": call.params,
        "content": call.body,
        "headers": {"content-type": "application/json"} if call.body else {},
        "timeout": httpx.Timeout(timeout_s + call.wait_s, connect=min(timeout_s, 5.0)),
    }


def check(response: httpx.Response) -> bytes:
    """Return the body of a good answer, or raise the error that the store named."""
    if response.status_code >= 400:
        raise error_of(response.status_code, response.content)
    return response.content


def mapped(error: httpx.TransportError, base_url: str) -> RouteReplayError:
    """Return our error for httpx's."""
    if isinstance(error, httpx.TimeoutException):
        msg = f"the route store at {base_url} did not answer in time ({type(error).__name__})"
        return StoreTimeout(msg, url=base_url)
    msg = (
        f"no connection to the route store at {base_url} ({error}). "
        "Is `routereplay serve` running there?"
    )
    return StoreUnreachable(msg, url=base_url)


def _key_from_environment() -> str | None:
    if path := os.environ.get("ROUTEREPLAY_API_KEY_FILE"):
        return Path(path).read_text().strip()
    return os.environ.get("ROUTEREPLAY_API_KEY") or None
