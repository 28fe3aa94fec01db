"""Query parameters and the runtime behind a request."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import Response

from routereplay.sidecar.auth.principal import Principal
from routereplay.sidecar.journal import Event, Journal
from routereplay.sidecar.runtime import Runtime
from routereplay.sidecar.service import RouteStore
from routereplay.sidecar.slices import Range
from routereplay.sidecar.store import keys
from routereplay.sidecar.store.base import RecordKey
from routereplay.wire.errors import BadRequest, StoreUnavailable

_RANGE = re.compile(r"([0-9]{0,9}):([0-9]{0,9})")

Format: TypeAlias = Annotated[
    Literal["routes", "npz", "json"], Query(description="`npz` and `json` serve people")
]
RequestId = Annotated[str, Path(description="`id` of the response, or the client's X-Request-Id")]
TrajectoryId = Annotated[str, Path(description="X-Session-ID, `session_id` or `trajectory_id`")]
Choice = Annotated[int, Query(ge=0, description="`choices[i].index` of the response")]
RangeText = Annotated[
    str | None,
    Query(
        description="half-open `a:b`; either side may be empty",
        # Said, and checked by `parse_range`, which knows what else a range must be.
        json_schema_extra={"pattern": f"^{_RANGE.pattern}$"},
    ),
]
PolicyText = Annotated[str | None, Query(description="only rows of this policy version")]
WaitText = Annotated[float, Query(ge=0, description="seconds to wait until it is sealed")]


def runtime_of(request: Request) -> Runtime:
    """Return the runtime of the app that serves `request`."""
    runtime: Runtime = request.app.state.runtime
    return runtime


def store_of(request: Request) -> RouteStore:
    """Return the store of the namespace that the caller's key is for."""
    principal: Principal = request.state.principal
    return runtime_of(request).store(principal.namespace)


def journal_of(request: Request) -> Journal:
    """Return what happened lately in the namespace that the caller's key is for."""
    principal: Principal = request.state.principal
    return runtime_of(request).journal(principal.namespace)


def principal_of(request: Request) -> Principal | None:
    """Return who asks; None for a probe without a key, and for nobody else."""
    principal: Principal | None = request.state.principal
    return principal


def parse_range(name: str, text: str | None) -> Range | None:
    """Return `a:b` as a pair; an empty end is None.

    Raises:
        BadRequest: it is no range, or ends before it begins.
    """
    if text is None:
        return None
    match = _RANGE.fullmatch(text)
    if match is None:
        msg = f"{name}={text[:40]!r} is no range; expected a:b with whole numbers, as in 0:24"
        raise BadRequest(msg)
    start = int(match[1] or 0)
    stop = int(match[2]) if match[2] else None
    if stop is not None and stop < start:
        msg = f"{name}={text!r} ends before it begins"
        raise BadRequest(msg)
    return start, stop


def left(request: Request) -> Callable[[], Awaitable[bool]]:
    """Return what tells whether the client of `request` has left.

    It raises `StoreUnavailable` once the server stops, so that a stop need not wait for
    readers that wait, and they know to ask again.
    """
    runtime = runtime_of(request)

    async def has_left() -> bool:
        if runtime.stopping:
            msg = "the store is stopping; ask again when it is back"
            raise StoreUnavailable(msg)
        return await request.is_disconnected()

    return has_left


def note_deleted(request: Request, deleted: list[RecordKey]) -> None:
    """Tell the journal what was deleted."""
    journal = journal_of(request)
    for key in deleted:
        trajectory_id = keys.trajectory_of(key.tag)
        journal.note(
            Event(
                kind="deleted",
                at=time.time(),
                request_id=key.request_id,
                choice=key.choice,
                trajectory_id=trajectory_id,
            )
        )


def json_answer(value: Any, status: int = 200) -> Response:
    """Return a value of the contract as JSON; digests are base64."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")
