"""`POST /v1/ingest`: recorder to store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from routereplay.sidecar.api.bodies import content_length, read_body
from routereplay.sidecar.api.params import journal_of, json_answer, runtime_of, store_of
from routereplay.sidecar.api.problems import status_of
from routereplay.sidecar.metrics import Metrics
from routereplay.wire.errors import error_from_wire
from routereplay.wire.frame import Frame
from routereplay.wire.records import Drop, IngestResult, Seal

logger = logging.getLogger(__name__)

_LONGEST = 200
"""Characters of a field in the log: what was refused may hold anything."""


class _Direct(APIRoute):
    """Calls its endpoint with the request: there are no parameters to be found in it first."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint."""
        return cast("Callable[[Request], Coroutine[Any, Any, Response]]", self.endpoint)


router = APIRouter(tags=["recorder"], route_class=_Direct)


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
            logger.info("refused: %s", outcome.message[:1000], extra=_ids(frame, code=outcome.code))
        elif isinstance(frame.header, Drop):
            reason = frame.header.reason[:_LONGEST]
            logger.info("lost by its recorder: %s", reason, extra=_ids(frame, reason=reason))
        elif isinstance(frame.header, Seal):
            logger.debug("%s", outcome.status, extra=_ids(frame))


def _ids(frame: Frame, **more: str) -> dict[str, Any]:
    """Return what a log line says of a frame: whose it is, and never what is in it."""
    header = frame.header.manifest if isinstance(frame.header, Seal) else frame.header
    names = ("request_id", "trajectory_id", "choice", "engine_id")
    found = {name: getattr(header, name) for name in names if hasattr(header, name)} | more
    return {name: v[:_LONGEST] if isinstance(v, str) else v for name, v in found.items()}
