"""Schemas of the JSON answers, derived from the types that the answers are made of."""

from __future__ import annotations

from typing import Any, TypedDict

import msgspec

from routereplay.sidecar.describe import RequestState, TrajectoryState
from routereplay.sidecar.expert_load import ExpertLoad
from routereplay.wire.records import FetchRequest, IngestResult

_PREFIX = "#/components/schemas/"


class Deleted(TypedDict):
    """What was deleted: choices of the request, or turns of the trajectory."""

    deleted: int


FETCH_BODY = FetchRequest
_ANSWERS: dict[str, type] = {
    "POST /v1/ingest": IngestResult,
    "GET /v1/requests/{request_id}": RequestState,
    "GET /v1/requests/{request_id}/experts": ExpertLoad,
    "DELETE /v1/requests/{request_id}": Deleted,
    "GET /v1/trajectories/{trajectory_id}": TrajectoryState,
    "GET /v1/trajectories/{trajectory_id}/experts": ExpertLoad,
    "DELETE /v1/trajectories/{trajectory_id}": Deleted,
}
"""Answers that others than our own page and command read; the rest may gain any field."""


def components() -> dict[str, Any]:
    """Return the schemas of all described types, by name."""
    types = [*dict.fromkeys(_ANSWERS.values()), FETCH_BODY]
    _, found = msgspec.json.schema_components(types, ref_template=_PREFIX + "{name}")
    return found


def reference(described: type) -> dict[str, Any]:
    """Return a reference to the schema of a type among `components`."""
    return {"$ref": _PREFIX + described.__name__}


def answer_schema(method: str, path: str) -> dict[str, Any]:
    """Return the schema of the JSON that an operation answers with; empty if it has none."""
    described = _ANSWERS.get(f"{method.upper()} {path}")
    return {} if described is None else reference(described)
