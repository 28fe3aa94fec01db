"""One request: its manifest, its routes, its end."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from routereplay.sidecar.api.answers import answer
from routereplay.sidecar.api.params import (
    Choice,
    Format,
    PolicyText,
    RangeText,
    RequestId,
    WaitText,
    json_answer,
    left,
    note_deleted,
    parse_range,
    runtime_of,
    store_of,
)
from routereplay.sidecar.api.quick import QuickRoute
from routereplay.sidecar.expert_load import expert_load

router = APIRouter(prefix="/v1/requests", tags=["requests"], route_class=QuickRoute)


@router.get("/{request_id}", summary="All choices of a request and their state")
async def describe(request: Request, request_id: RequestId) -> Response:
    """Return the manifest of every choice, or what became of the request."""
    return json_answer(await store_of(request).describe_request(request_id))


@router.get("/{request_id}/routes", summary="The routes of one choice")
async def routes(
    request: Request,
    request_id: RequestId,
    choice: Choice = 0,
    layers: RangeText = None,
    tokens: RangeText = None,
    wait: WaitText = 0.0,
    format: Format = "routes",
) -> Response:
    """Return one `routes` frame with one item."""
    runtime = runtime_of(request)
    with runtime.metrics.waiting.track_inprogress():
        found = await store_of(request).fetch_request(
            request_id,
            choice,
            tokens=parse_range("tokens", tokens),
            layers=parse_range("layers", layers),
            wait_s=wait,
            gone=left(request),
        )
    return await answer(found, format, runtime.metrics)


@router.get("/{request_id}/experts", summary="How the rows of a choice fall on the experts")
async def experts(
    request: Request,
    request_id: RequestId,
    choice: Choice = 0,
    tokens: RangeText = None,
    policy: PolicyText = None,
) -> Response:
    """Return counts `[layers, experts]` and the load of each layer; dense layers count 0."""
    span = parse_range("tokens", tokens)
    found = await store_of(request).fetch_request(request_id, choice, tokens=span)
    return json_answer(await expert_load(found, policy=policy))


@router.delete("/{request_id}", summary="Delete every choice of a request")
async def delete(request: Request, request_id: RequestId) -> Response:
    """Return how many choices were deleted."""
    deleted = await store_of(request).delete_request(request_id)
    note_deleted(request, deleted)
    return json_answer({"deleted": len(deleted)})
