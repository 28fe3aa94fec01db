"""Counts, times, traces and logs every request."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from routereplay.sidecar.metrics import Metrics
from routereplay.sidecar.tracing import end_span, traced

logger = logging.getLogger(__name__)


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

        with traced(scope) as span:
            try:
                await self._app(scope, receive, sending)
            finally:
                # The template, not the path: ids as labels would grow without bound.
                route = getattr(scope.get("route"), "path", "unmatched")
                seconds = time.perf_counter() - started
                self._metrics.http_requests.labels(route, scope["method"], status).inc()
                self._metrics.http_seconds.labels(route).observe(seconds)
                if span is not None:
                    end_span(span, scope, route, status)
                _log(scope, route, status, seconds)


def _log(scope: Scope, route: str, status: str, seconds: float) -> None:
    """Log an answer: what went wrong always, the rest for who asks for DEBUG."""
    number = int(status) if status.isdigit() else 0
    # A 404 is how a trainer hears that something is not there yet.
    good = number < 400 or number == 404
    level = logging.WARNING if number >= 500 else logging.DEBUG if good else logging.INFO
    if logger.isEnabledFor(level):
        fields = {"method": scope["method"], "route": route, "status": status}
        fields |= scope.get("path_params", {})
        logger.log(
            level,
            "%s %s: %s",
            scope["method"],
            route,
            status,
            extra={**fields, "seconds": round(seconds, 6)},
        )
