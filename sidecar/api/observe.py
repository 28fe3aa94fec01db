"""Counts and times every request."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from routereplay.sidecar.metrics import Metrics


class Observe:
    """ASGI middleware; plain, so that bodies and disconnects pass through untouched."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; count and time it when its response has ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = "none"
        started = time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            # The template, not the path: ids as labels would grow without bound.
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.http_requests.labels(route, scope["method"], status).inc()
            self._metrics.http_seconds.labels(route).observe(time.perf_counter() - started)
