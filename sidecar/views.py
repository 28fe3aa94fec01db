"""The shapes of JSON answers that are put together from several places."""

from __future__ import annotations

from typing import Any, TypedDict

from routereplay.wire.records import (
    FetchedTrajectory,
    FetchFailure,
    RecordManifest,
    RowSource,
)


class RoutesItemView(TypedDict):
    """The routes of one record, or a slice of it, as `format=json` gives them."""

    manifest: RecordManifest
    token_start: int
    layer_start: int
    parent: int | None
    sources: tuple[RowSource, ...]
    token_ids: list[int]
    experts: list[list[list[int]]]
    """`[tokens, layers, topk]`."""


class RoutesView(TypedDict):
    """What `format=json` gives."""

    items: list[RoutesItemView]
    trajectories: list[FetchedTrajectory]
    failures: list[FetchFailure]


class RecentRequest(TypedDict):
    """The latest state of one choice of a request."""

    request_id: str
    choice: int
    trajectory_id: str | None
    state: str
    reason: str
    at: float
    """Unix seconds, as all times here."""
    expires_at: float | None
    model: str
    tokens: int
    rows: int
    bytes: int
    complete: bool
    invalid: tuple[str, ...]
    policy_versions: tuple[str, ...]
    engine_id: str


class RecentRequests(TypedDict):
    """The latest requests, newest first; `window` events were looked at."""

    requests: list[RecentRequest]
    window: int


class RecentTrajectory(TypedDict):
    """What the latest events say of one trajectory."""

    trajectory_id: str | None
    request_id: str
    turns: int
    sealed: int
    dropped: int
    complete: bool
    invalid: list[str]
    rows: int
    bytes: int
    tokens: int
    model: str
    policy_versions: list[str]
    first_at: float
    last_at: float
    expires_at: float | None


class RecentTrajectories(TypedDict):
    """The latest trajectories, newest first; `window` events were looked at."""

    trajectories: list[RecentTrajectory]
    window: int


class Deleted(TypedDict):
    """How many choices were deleted."""

    deleted: int


class Status(TypedDict):
    """The answer to a probe."""

    status: str


class Info(TypedDict):
    """Versions, limits and the engine."""

    version: str
    wire_version: int
    durability: str
    limits: dict[str, float]
    engine: dict[str, Any]


class _Summary(TypedDict):
    at: float
    version: str
    durability: str
    ttl_s: int
    ready: bool
    counters: dict[str, float]


class Summary(_Summary, total=False):
    """One picture of the store; `problem` stands in place of the rest while the engine is away."""

    problem: dict[str, str]
    engine: dict[str, Any]
    stored: dict[str, Any]
    recorders: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
