"""What the latest events say of trajectories, requests and recorders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from routereplay.sidecar.journal import Bucket, Event
from routereplay.sidecar.views import RecentRequest, RecentTrajectory

_ALARM_WINDOW_S = 900.0
_NEARLY = 0.85


def recent_requests(events: Sequence[Event], *, ttl_s: float, limit: int) -> list[RecentRequest]:
    """Return the latest state of each request's choices, newest first."""
    return [_request(event, ttl_s) for event in reversed(_latest(events).values())][:limit]


def recent_trajectories(
    events: Sequence[Event], *, ttl_s: float, limit: int
) -> list[RecentTrajectory]:
    """Return what is known of each trajectory, the one with the newest event first.

    A request without a trajectory is one of its own, with `trajectory_id` null.
    """
    found: dict[tuple[str | None, str], list[Event]] = {}
    for event in reversed(_latest(events).values()):
        own = event.request_id if event.trajectory_id is None else ""
        found.setdefault((event.trajectory_id, own), []).append(event)
    return [_trajectory(turns, ttl_s) for turns in list(found.values())[:limit]]


def recorders(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Return what each recorder has brought, the one heard last first."""
    by_engine: dict[str, list[Event]] = {}
    for event in events:
        if event.engine_id:
            by_engine.setdefault(event.engine_id, []).append(event)
    found = [_recorder(engine_id, mine) for engine_id, mine in by_engine.items()]
    return sorted(found, key=lambda recorder: recorder["last_at"], reverse=True)


def stored(buckets: Sequence[Bucket], *, ttl_s: float, now: float) -> dict[str, Any]:
    """Return what was sealed within the life of a record, and when it expires."""
    return {
        "records": sum(bucket.records for bucket in buckets),
        "rows": sum(bucket.rows for bucket in buckets),
        "bytes": sum(bucket.nbytes for bucket in buckets),
        "expiring": [
            {
                "in_s": max(bucket.stop + ttl_s - now, 0.0),
                "records": bucket.records,
                "bytes": bucket.nbytes,
            }
            for bucket in buckets
        ],
    }


def alarms(
    events: Sequence[Event],
    engine: dict[str, Any],
    now: float,
    *,
    high_water: float,
    data_lost: float = 0,
) -> list[dict[str, Any]]:
    """Return what an operator should look at, the worst first.

    Args:
        events: the latest, oldest first.
        engine: what it says of itself.
        now: Unix seconds.
        high_water: part of the engine's memory from which on new routes are refused.
        data_lost: how often this sidecar found the engine without what it had held.
    """
    found = []
    if data_lost:
        text = "The engine came back without what it had held; routes sealed before are gone."
        found.append(_alarm("critical", "engine_lost_data", text, int(data_lost)))
    used, limit = engine.get("used_memory", 0), engine.get("maxmemory", 0)
    if limit and used / limit >= high_water:
        text = f"The engine is {used / limit:.0%} full: new routes are refused until some expire."
        found.append(_alarm("critical", "engine_full", text, 1))
    elif limit and used / limit > _NEARLY * high_water:
        text = (
            f"The engine is {used / limit:.0%} full; from {high_water:.0%} on routes are refused."
        )
        found.append(_alarm("warning", "engine_nearly_full", text, 1))
    late = [event for event in events if event.at > now - _ALARM_WINDOW_S]
    for reason, count in Counter(reason for e in late for reason in e.invalid).most_common():
        text = f"The recorder's watch saw rows that cannot be real routes: {reason}."
        found.append(_alarm("critical", "routes_invalid", text, count, reason=reason))
    for reason, count in Counter(e.reason for e in late if e.kind == "dropped").most_common():
        text = f"Dropped in the last 15 minutes: {reason}."
        # The client left before the first token: nothing was there to lose.
        severity = "info" if reason == "aborted" else "warning"
        found.append(_alarm(severity, "records_dropped", text, count, reason=reason))
    partial = sum(event.kind == "sealed" and not event.complete for event in late)
    if partial:
        text = "Sealed in the last 15 minutes without all their rows."
        found.append(_alarm("warning", "records_incomplete", text, partial))
    return sorted(found, key=lambda alarm: ("critical", "warning", "info").index(alarm["severity"]))


def _alarm(severity: str, code: str, message: str, count: int, **details: str) -> dict[str, Any]:
    return {
        "severity": severity,
        "code": code,
        "message": message,
        "count": count,
        "details": details,
    }


def _latest(events: Iterable[Event]) -> dict[tuple[str | None, str, int], Event]:
    """Return the last event of each choice, in order of time; without what was deleted."""
    latest: dict[tuple[str | None, str, int], Event] = {}
    for event in events:
        key = (event.trajectory_id, event.request_id, event.choice)
        latest.pop(key, None)
        if event.kind != "deleted":
            latest[key] = event
    return latest


def _request(event: Event, ttl_s: float) -> RecentRequest:
    return {
        "request_id": event.request_id,
        "choice": event.choice,
        "trajectory_id": event.trajectory_id,
        "state": event.kind,
        "reason": event.reason,
        "at": event.at,
        "expires_at": event.at + ttl_s if event.kind == "sealed" else None,
        "model": event.model,
        "tokens": event.tokens,
        "rows": event.rows,
        "bytes": event.nbytes,
        "complete": event.complete,
        "invalid": event.invalid,
        "policy_versions": event.policy_versions,
        "engine_id": event.engine_id,
    }


def _trajectory(turns: Sequence[Event], ttl_s: float) -> RecentTrajectory:
    """Return one trajectory; `turns` are its choices, the newest first."""
    sealed = [turn for turn in turns if turn.kind == "sealed"]
    newest = turns[0]
    return {
        "trajectory_id": newest.trajectory_id,
        "request_id": newest.request_id,
        "turns": len(turns),
        "sealed": len(sealed),
        "dropped": len(turns) - len(sealed),
        "complete": len(sealed) == len(turns) and all(turn.complete for turn in sealed),
        "invalid": sorted({reason for turn in sealed for reason in turn.invalid}),
        "rows": sum(turn.rows for turn in sealed),
        "bytes": sum(turn.nbytes for turn in sealed),
        "tokens": max((turn.tokens for turn in sealed), default=0),
        "model": sealed[0].model if sealed else "",
        "policy_versions": sorted({v for turn in sealed for v in turn.policy_versions}),
        "first_at": turns[-1].at,
        "last_at": newest.at,
        "expires_at": _end_of_life(sealed, ttl_s),
    }


def _end_of_life(sealed: Sequence[Event], ttl_s: float) -> float | None:
    """Return until when a trajectory is whole at least; `sealed` are its turns, newest first."""
    if not sealed:
        return None
    # The oldest turn goes first; a new one leaves none with less than half a life.
    return max(sealed[-1].at + ttl_s, sealed[0].at + ttl_s / 2)


def _recorder(engine_id: str, events: Sequence[Event]) -> dict[str, Any]:
    sealed = [event for event in events if event.kind == "sealed"]
    dropped = Counter(event.reason for event in events if event.kind == "dropped")
    return {
        "engine_id": engine_id,
        "model": sealed[-1].model if sealed else "",
        "first_at": events[0].at,
        "last_at": events[-1].at,
        "sealed": len(sealed),
        "incomplete": sum(not event.complete for event in sealed),
        "invalid": dict(Counter(reason for event in sealed for reason in event.invalid)),
        "rows": sum(event.rows for event in sealed),
        "bytes": sum(event.nbytes for event in sealed),
        "dropped": dict(dropped),
        "rows_lost": sum(event.rows for event in events if event.kind == "dropped"),
        "policy_versions": sealed[-1].policy_versions if sealed else (),
    }
