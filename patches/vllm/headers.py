"""What a client asks of the recorder in HTTP headers, for clients that cannot add to a body.

    vllm serve MODEL --middleware routereplay.patches.vllm.headers.RouteHeaders

vLLM's engine sees no headers. This ASGI middleware notes them in a context variable, and the
request is admitted in the same context: every task that vLLM starts for it inherits the note.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, TypeAlias

_Scope: TypeAlias = MutableMapping[str, Any]
_App: TypeAlias = Callable[[_Scope, Any, Any], Awaitable[None]]

HEADERS: dict[bytes, str] = {
    b"x-trajectory-id": "trajectory_id",
    b"x-policy-version": "policy_version",
    b"x-return-routed-experts": "return_routed_experts",
    b"x-record-routes": "record_routes",
    # vLLM reads it by itself from 0.28 on.
    b"x-session-id": "session_id",
}
"""Header to the field of `vllm_xargs` that means the same; the field wins."""

_asked: ContextVar[Mapping[str, str]] = ContextVar("routereplay_headers", default={})  # noqa: B039


def asked_in_headers() -> Mapping[str, str]:
    """Return what the HTTP request that is being served asks, by field of `vllm_xargs`."""
    return _asked.get()


class RouteHeaders:
    """The middleware.

    Args:
        app: what it wraps.
    """

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            found = {
                HEADERS[name]: value.decode("latin-1")
                for name, value in scope["headers"]
                if name in HEADERS
            }
            _asked.set(found)
        await self._app(scope, receive, send)
