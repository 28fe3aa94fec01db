"""`POST /v1/ingest`: recorder to store."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from routereplay.sidecar.api.bodies import content_length, read_body
from routereplay.sidecar.api.params import journal_of, json_answer, runtime_of, store_of
from routereplay.sidecar.api.problems import status_of
from routereplay.sidecar.metrics import Metrics
from routereplay.wire.errors import error_from_wire
from routereplay.wire.frame import Frame
from routereplay.wire.records import IngestResult

router = APIRouter(tags=["recorder"])


@router.post("/v1/ingest", summary="Store frames: chunk, seal, drop")
async def ingest(request: Request) -> Response:
    """Store the frames of the body; one result for each of them, in order."""
    runtime = runtime_of(request)
    length = content_length(request, runtime.settings.max_body_bytes)
    await runtime.watch.admit(length)
    with runtime.admission.room_for(length, request.state.principal):
        body = await read_body(request, length)
        runtime.metrics.ingest_bytes.inc(length)
        result, frames = await store_of(request).ingest(body)
    _count(runtime.metrics, result, frames)
    journal = journal_of(request)
    for frame, outcome in zip(frames, result.results, strict=True):
        journal.note_frame(frame, outcome)
    return json_answer(result, _status(result))


def _status(result: IngestResult) -> int:
    for frame in result.results:
        if frame.status == "refused":
            return status_of(type(error_from_wire(frame.code, frame.message, {})))
    return 200


def _count(metrics: Metrics, result: IngestResult, frames: list[Frame]) -> None:
    for frame, outcome in zip(frames, result.results, strict=True):
        metrics.frames.labels(type(frame.header).__name__.lower(), outcome.status).inc()
        metrics.ended(frame, outcome)
        if outcome.status == "refused":
            metrics.refused.labels(outcome.code).inc()
