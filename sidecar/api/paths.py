"""Ids with a slash in a path: `%2F` belongs to the id, `/` separates."""

from __future__ import annotations

from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

from routereplay.wire.ids import normalize_id


class WholeIds:
    """ASGI middleware: what is between two slashes of a path is one thing, whatever it holds.

    Servers decode a path before it is routed, so `a%2Froutes` would lead to the routes of `a`.
    An id with a slash is no key in any case: here already it becomes the key that it stands for.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its path as its client wrote it."""
        raw = scope.get("raw_path") or b""
        if scope["type"] == "http" and b"%2f" in raw.lower():
            segments = map(unquote, raw.decode("ascii", "replace").split("/"))
            scope["path"] = "/".join(normalize_id(one) if "/" in one else one for one in segments)
        await self._app(scope, receive, send)
