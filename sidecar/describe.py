"""What the store says of requests and trajectories, without their routes."""

from __future__ import annotations

from typing import TypedDict

from routereplay.sidecar.store import keys
from routereplay.sidecar.store.base import RecordStatus
from routereplay.wire.records import RecordManifest, TurnState, TurnStatus


class RequestState(TypedDict):
    """All choices of a request and their state."""

    request_id: str
    trajectory_id: str | None
    choices: list[TurnStatus]


class Coverage(TypedDict):
    """How much of a trajectory is there; `complete` if nothing is missing."""

    turns: int
    sealed: int
    pending: int
    dropped: int
    rows: int
    rows_lost: int
    orphans: int
    complete: bool


class TrajectoryState(TypedDict):
    """The turns of a trajectory in order of start."""

    trajectory_id: str
    turns: list[TurnStatus]
    coverage: Coverage
    policy_versions: list[str]


def turn_status(status: RecordStatus) -> TurnStatus:
    """Return what the wire says of a turn.

    The wire knows three states; one that is gone is `dropped`, with where it went as the
    reason, so that a trajectory never looks whole when a turn of it has expired.
    """
    state: TurnState
    match status.state:
        case "sealed" | "pending" as state:
            reason = ""
        case "dropped" as state:
            reason = status.entry.reason
        case "expired" | "deleted" as reason:
            state = "dropped"
    return TurnStatus(
        request_id=status.key.request_id,
        choice=status.key.choice,
        state=state,
        reason=reason,
        engine_id=status.entry.engine_id,
        ordinal=status.entry.ordinal,
        started_at=status.entry.started_at,
        rows_lost=status.entry.rows_lost,
        manifest=None if status.record is None else status.record.manifest,
    )


def describe_request(choices: list[RecordStatus]) -> RequestState:
    """Return a request's choices with their states."""
    first = choices[0].key
    return {
        "request_id": first.request_id,
        "trajectory_id": keys.trajectory_of(first.tag),
        "choices": [turn_status(choice) for choice in choices],
    }


def describe_trajectory(trajectory_id: str, found: list[RecordStatus]) -> TrajectoryState:
    """Return a trajectory's turns in order of start, what was recorded, and by which policy."""
    turns = [turn_status(status) for status in found]
    manifests = [turn.manifest for turn in turns if turn.manifest is not None]
    versions = {span.version for manifest in manifests for span in manifest.policy_versions}
    return {
        "trajectory_id": trajectory_id,
        "turns": turns,
        "coverage": _coverage(turns, manifests),
        "policy_versions": sorted(versions),
    }


def _coverage(turns: list[TurnStatus], manifests: list[RecordManifest]) -> Coverage:
    states = [turn.state for turn in turns]
    orphans = _orphans(turns)
    return {
        "turns": len(turns),
        "sealed": states.count("sealed"),
        "pending": states.count("pending"),
        "dropped": states.count("dropped"),
        "rows": sum(manifest.rows for manifest in manifests),
        "rows_lost": sum(turn.rows_lost for turn in turns),
        "orphans": orphans,
        "complete": len(manifests) == len(turns)
        and all(m.complete for m in manifests)
        and not orphans,
    }


def _orphans(turns: list[TurnStatus]) -> int:
    """Count the deltas whose parent is not there, sealed."""
    sealed = {(turn.request_id, turn.choice) for turn in turns if turn.state == "sealed"}
    parents = [turn.manifest.parent for turn in turns if turn.manifest is not None]
    return sum(
        parent is not None and (parent.request_id, parent.choice) not in sealed
        for parent in parents
    )
