"""One trajectory: its turns, their routes, its end."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from routereplay.sidecar.api.answers import answer
from routereplay.sidecar.api.params import (
    Format,
    PolicyText,
    RangeText,
    TrajectoryId,
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
from routereplay.wire.records import TrajectoryKey

router = APIRouter(prefix="/v1/trajectories", tags=["trajectories"], route_class=QuickRoute)


@router.get("/{trajectory_id}", summary="Turns in order, coverage, policy versions")
async def describe(request: Request, trajectory_id: TrajectoryId) -> Response:
    """Return the turns of a trajectory, or what became of it."""
    return json_answer(await store_of(request).describe_trajectory(trajectory_id))


@router.get("/{trajectory_id}/routes", summary="Each turn's new rows, in one frame")
async def routes(
    request: Request,
    trajectory_id: TrajectoryId,
    layers: RangeText = None,
    tokens: RangeText = None,
    wait: WaitText = 0.0,
    turns: Annotated[int, Query(ge=0, description="turns that it has at least")] = 0,
    has: Annotated[
        list[str], Query(alias="request", description="id of a request that is one of its turns")
    ] = [],  # noqa: B006 - FastAPI makes a fresh one
    format: Format = "routes",
) -> Response:
    """Return one `routes` frame with an item for each sealed turn.

    A turn that the store has not heard of is waited for if `turns` or `request` tell of it,
    and without it the answer is `pending`.
    """
    runtime = runtime_of(request)
    with runtime.metrics.waiting.track_inprogress():
        found = await store_of(request).fetch_trajectory(
            TrajectoryKey(id=trajectory_id, turns=turns, requests=tuple(has)),
            tokens=parse_range("tokens", tokens),
            layers=parse_range("layers", layers),
            wait_s=wait,
            gone=left(request),
        )
    return await answer(found, format, runtime.metrics)


@router.get("/{trajectory_id}/experts", summary="How its rows fall on the experts")
async def experts(
    request: Request,
    trajectory_id: TrajectoryId,
    turn: Annotated[int | None, Query(ge=0, description="one sealed turn, from 0")] = None,
    tokens: RangeText = None,
    policy: PolicyText = None,
) -> Response:
    """Return counts `[layers, experts]` and the load of each layer; each row counts once."""
    span = parse_range("tokens", tokens)
    found = await store_of(request).fetch_trajectory(TrajectoryKey(id=trajectory_id), tokens=span)
    return json_answer(await expert_load(found, turn=turn, policy=policy))


@router.delete("/{trajectory_id}", summary="Delete every turn of a trajectory")
async def delete(request: Request, trajectory_id: TrajectoryId) -> Response:
    """Return how many turns were deleted."""
    deleted = await store_of(request).delete_trajectory(trajectory_id)
    note_deleted(request, deleted)
    return json_answer({"deleted": len(deleted)})
