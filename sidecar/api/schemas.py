"""Bodies and answers of every operation, and the errors it may end with, for the description."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

from routereplay.sidecar import views
from routereplay.sidecar.describe import RequestState, TrajectoryState
from routereplay.sidecar.expert_load import ExpertLoad
from routereplay.sidecar.http.answers import PROBLEM_TYPE
from routereplay.wire import errors
from routereplay.wire.records import FetchRequest, IngestResult
from routereplay.wire.version import MEDIA_TYPE

Schema: TypeAlias = dict[str, Any]
Operation: TypeAlias = tuple[str, str]
"""Method and path."""

_REQUEST, _TRAJECTORY = "/v1/requests/{request_id}", "/v1/trajectories/{trajectory_id}"
_INGEST, _FETCH = ("post", "/v1/ingest"), ("post", "/v1/fetch")
_ROUTES = (("get", f"{_REQUEST}/routes"), ("get", f"{_TRAJECTORY}/routes"))
_EXPERTS = (("get", f"{_REQUEST}/experts"), ("get", f"{_TRAJECTORY}/experts"))
_DESCRIBED = (("get", _REQUEST), ("get", _TRAJECTORY))
_DELETIONS = (("delete", _REQUEST), ("delete", _TRAJECTORY))

_JSON: dict[Operation, Any] = {
    ("get", "/livez"): views.Status,
    ("get", "/readyz"): views.Status,
    ("get", "/v1/info"): views.Info,
    ("get", "/v1/summary"): views.Summary,
    ("get", "/v1/requests"): views.RecentRequests,
    ("get", "/v1/trajectories"): views.RecentTrajectories,
    **dict(zip(_DESCRIBED, (RequestState, TrajectoryState), strict=True)),
    **dict.fromkeys(_EXPERTS, ExpertLoad),
    **dict.fromkeys(_ROUTES, views.RoutesView),
    **dict.fromkeys(_DELETIONS, views.Deleted),
    _INGEST: IngestResult,
}
_BINARY: Schema = {"schema": {"type": "string", "format": "binary"}}
_OTHER: dict[Operation, Schema] = {
    ("get", "/metrics"): {"text/plain": {"schema": {"type": "string"}}},
    _FETCH: {MEDIA_TYPE: _BINARY},
    **{routes: {MEDIA_TYPE: _BINARY, "application/zip": _BINARY} for routes in _ROUTES},
}

_ALWAYS = (
    errors.BadRequest,
    errors.Forbidden,
    errors.HeadersTooLarge,
    errors.RequestTooSlow,
    errors.StoreUnavailable,
)
_WITH_KEYS = (errors.Unauthenticated, errors.RateLimited)
_ABSENT = (
    errors.NotFound,
    errors.RoutesPending,
    errors.RoutesExpired,
    errors.RoutesDeleted,
    errors.RoutesDropped,
)
_ROWS = (*_ABSENT, errors.CorruptRecord, errors.ParentMismatch, errors.ParentLost)
_BODY = (errors.LengthRequired, errors.TooLarge)
_ERRORS: dict[Operation, tuple[type[errors.RouteReplayError], ...]] = {
    _INGEST: (
        *_BODY,
        errors.UnsupportedWireVersion,
        errors.MalformedFrame,
        errors.InvalidIdentifier,
        errors.InvalidRoutes,
        errors.RecordConflict,
        errors.UploadIncomplete,
        errors.RoutesDeleted,
        errors.RoutesDropped,
        errors.ParentMismatch,
        errors.ParentLost,
        errors.LimitReached,
        errors.StoreFull,
    ),
    # What is wrong with one id of a batch is in the frame.
    _FETCH: _BODY,
    **dict.fromkeys((*_DESCRIBED, *_DELETIONS), _ABSENT),
    **dict.fromkeys((*_ROUTES, *_EXPERTS), _ROWS),
}


def components() -> Schema:
    """Return every schema that the others refer to, by name."""
    kinds = [*dict.fromkeys(_JSON.values()), FetchRequest]
    _, found = msgspec.json.schema_components(kinds, ref_template=_ref("{name}")["$ref"])
    return {**found, "Problem": _PROBLEM}


def body_of(operation: Operation) -> Schema | None:
    """Return what is posted, by media type; None if nothing is."""
    if operation == _INGEST:
        return {MEDIA_TYPE: _BINARY}
    return {"application/json": {"schema": _ref("FetchRequest")}} if operation == _FETCH else None


def responses_of(operation: Operation, *, with_keys: bool) -> Schema:
    """Return what an operation answers, by status; errors of one status share an entry."""
    content = dict(_OTHER.get(operation, {}))
    if operation in _JSON:
        content["application/json"] = {"schema": _ref(_JSON[operation].__name__)}
    answers: Schema = {"200": {"description": "As asked.", "content": content}}
    for status, codes in _codes(operation, with_keys):
        problem: Schema = {PROBLEM_TYPE: {"schema": _ref("Problem")}}
        if operation == _INGEST:
            problem["application/json"] = {"schema": _ref("IngestResult")}
        answers[str(status)] = {
            "description": ", ".join(f"`{code}`" for code in codes),
            "content": problem,
        }
        if set(codes) & errors.RETRYABLE_CODES:
            answers[str(status)]["headers"] = _RETRY_AFTER
    return answers


def _codes(operation: Operation, with_keys: bool) -> Iterator[tuple[int, list[str]]]:
    found: dict[int, list[str]] = {}
    for error in (*_ALWAYS, *(_WITH_KEYS if with_keys else ()), *_ERRORS.get(operation, ())):
        found.setdefault(errors.HTTP_STATUS[error], []).append(error.code)
    yield from sorted(found.items())


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_RETRY_AFTER: Schema = {
    "Retry-After": {
        "description": "seconds; missing where asking again does not help",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_PROBLEM: Schema = {
    "type": "object",
    "required": ["type", "title", "status", "code", "message", "details"],
    "properties": {
        "type": {"type": "string", "description": "`urn:routereplay:error:CODE`"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {
            "type": "string",
            "enum": sorted(
                {error.code for error in errors.HTTP_STATUS}
                | {"no_such_endpoint", "http", "internal"}
            ),
        },
        "message": {"type": "string", "description": "what was found, expected, and to be done"},
        "details": {"type": "object"},
    },
}
