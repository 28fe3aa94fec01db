"""OpenTelemetry with a real SDK: a client's span is the parent of the store's."""

import subprocess
import sys

import pytest

CODE = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient
from routereplay.client._transport import _trace
from routereplay.sidecar.app import create_app
from routereplay.sidecar.settings import Settings

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
app = create_app(Settings(durability="memory"))
with TestClient(app) as http, trace.get_tracer("trainer").start_as_current_span("step"):
    http.get("/v1/requests/asked", headers=_trace())
mine, parent = spans.get_finished_spans()
assert mine.name == "GET /v1/requests/{request_id}", mine.name
assert mine.parent.span_id == parent.context.span_id
assert mine.attributes["http.response.status_code"] == 404
assert mine.attributes["routereplay.request_id"] == "asked"
"""

WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from routereplay.sidecar import tracing
assert tracing.trace is None
scope = {"method": "GET", "path": "/", "headers": [(b"traceparent", b"garbage")]}
with tracing.traced(scope) as span:
    assert span is None and tracing.LOG_FIELDS.get() == {}
"""


@pytest.mark.parametrize("code", [CODE, WITHOUT], ids=["with-an-sdk", "not-installed"])
def test_spans_are_made_where_an_sdk_is_and_nothing_is_missed_where_none_is(code, tmp_path):
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
