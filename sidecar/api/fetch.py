"""`POST /v1/fetch`: many requests and trajectories in one frame."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from routereplay.sidecar.api.answers import answer
from routereplay.sidecar.api.bodies import content_length, read_body
from routereplay.sidecar.api.params import left, runtime_of, store_of
from routereplay.wire.errors import BadRequest
from routereplay.wire.records import FetchRequest

router = APIRouter(tags=["batches"])

MAX_QUERY_BYTES = 1024 * 1024
_decoder = msgspec.json.Decoder(FetchRequest)


@router.post("/v1/fetch", summary="Many ids in one streamed frame")
async def fetch(request: Request) -> Response:
    """Return one `routes` frame; ids that cannot be served are listed in it."""
    runtime = runtime_of(request)
    body = await read_body(request, content_length(request, MAX_QUERY_BYTES))
    with runtime.metrics.waiting.track_inprogress():
        found = await store_of(request).fetch_batch(_decode(body), gone=left(request))
    return await answer(found, "routes", runtime.metrics)


def _decode(body: memoryview) -> FetchRequest:
    try:
        asked = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        msg = f"the body is no fetch request: {error}"
        raise BadRequest(msg) from error
    for name in ("layers", "tokens"):
        asked_range = getattr(asked, name)
        if asked_range is not None and not 0 <= asked_range[0] <= asked_range[1]:
            msg = f"{name} {asked_range} is no half-open range"
            raise BadRequest(msg)
    return asked
