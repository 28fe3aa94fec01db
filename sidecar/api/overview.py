"""What is here and what happens: for the page, the command line and scripts. Reads only."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from routereplay.sidecar import overview
from routereplay.sidecar.api.params import journal_of, json_answer, runtime_of
from routereplay.sidecar.errors import EngineMisconfigured
from routereplay.sidecar.journal import MAX_EVENTS
from routereplay.sidecar.version import package_version
from routereplay.wire.errors import StoreFull, StoreUnavailable

router = APIRouter(prefix="/v1", tags=["overview"])

Limit = Annotated[int, Query(ge=1, le=MAX_EVENTS, description="entries at most")]


@router.get("/summary", summary="Is it well, what is stored, what expires, who records")
async def summary(request: Request) -> Response:
    """Return one picture of the store; an engine that is away is a part of it, not an error.

    `counters` are of this sidecar since its start, everything else is of the engine.
    """
    runtime = runtime_of(request)
    now, ttl_s = time.time(), runtime.settings.ttl_s
    answer: dict[str, Any] = {
        "at": now,
        "version": package_version(),
        "durability": runtime.settings.durability,
        "ttl_s": ttl_s,
        "ready": True,
        "counters": runtime.metrics.snapshot(),
    }
    try:
        await runtime.check()
        engine = {"kind": runtime.engine_kind, **await runtime.engine_info()}
        events = await journal_of(request).recent()
        buckets = await journal_of(request).sealed()
    except (StoreUnavailable, StoreFull, EngineMisconfigured) as error:
        problem = {"code": error.code, "message": error.message}
        return json_answer(answer | {"ready": False, "problem": problem})
    alarms = overview.alarms(
        events,
        engine,
        now,
        high_water=runtime.settings.memory_high_water,
        data_lost=answer["counters"]["routereplay_engine_data_lost_total"],
    )
    return json_answer(
        answer
        | {
            "engine": engine,
            "stored": overview.stored(buckets, ttl_s=ttl_s, now=now),
            "recorders": overview.recorders(events),
            "alarms": alarms,
        }
    )


@router.get("/requests", summary="The latest requests, newest first")
async def requests(request: Request, limit: Limit = 50) -> Response:
    """Return the latest requests that were sealed or dropped; `window` were looked at."""
    runtime = runtime_of(request)
    events = await journal_of(request).recent()
    found = overview.recent_requests(events, ttl_s=runtime.settings.ttl_s, limit=limit)
    return json_answer({"requests": found, "window": len(events)})


@router.get("/trajectories", summary="The latest trajectories, newest first")
async def trajectories(request: Request, limit: Limit = 50) -> Response:
    """Return the latest trajectories, as far as the last events (`window` of them) tell."""
    runtime = runtime_of(request)
    events = await journal_of(request).recent()
    found = overview.recent_trajectories(events, ttl_s=runtime.settings.ttl_s, limit=limit)
    return json_answer({"trajectories": found, "window": len(events)})
