"""The trace that a request belongs to: in every log line of it, and as an OpenTelemetry span.

OpenTelemetry's API is used where it is installed and an SDK was set up in this process, as
`opentelemetry-instrument routereplay serve` does; nothing of it is needed. The trace id of a
W3C `traceparent` is in the log either way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from starlette.types import Scope

LOG_FIELDS: ContextVar[dict[str, str]] = ContextVar("log_fields")
"""What every log line of the request that is served here carries."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_NO_TRACE = "0" * 32

try:
    from opentelemetry import propagate, trace
except ModuleNotFoundError:
    trace = None  # type: ignore[assignment, unused-ignore]


@contextmanager
def traced(scope: Scope) -> Iterator[Any]:
    """Put a request's trace id into its log lines; yields its span, or None without an SDK."""
    headers = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"traceparent", b"tracestate")
    }
    fields: dict[str, str] = {}
    match = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    if match and match[1] != _NO_TRACE:
        fields["trace_id"] = match[1]
    token = LOG_FIELDS.set(fields)
    try:
        if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            yield None
            return
        # Newer releases of FastAPI make a span of the request themselves: ours is below it.
        inner = trace.get_current_span().is_recording()
        tracer = trace.get_tracer("routereplay.sidecar")
        with tracer.start_as_current_span(
            scope["method"],
            context=None if inner else propagate.extract(headers),
            kind=trace.SpanKind.INTERNAL if inner else trace.SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.path": scope["path"]},
        ) as span:
            fields["trace_id"] = f"{span.get_span_context().trace_id:032x}"
            yield span
    finally:
        LOG_FIELDS.reset(token)


def end_span(span: Any, scope: Scope, route: str, status: str) -> None:
    """Name a span by its route, and say what the answer was and which record it was of."""
    span.update_name(f"{scope['method']} {route}")
    span.set_attribute("http.route", route)
    for name, value in scope.get("path_params", {}).items():
        span.set_attribute(f"routereplay.{name}", value)
    if status.isdigit():
        span.set_attribute("http.response.status_code", int(status))
        if int(status) >= 500:
            span.set_status(trace.StatusCode.ERROR)
