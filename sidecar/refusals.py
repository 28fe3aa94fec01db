"""Why a frame is refused by what is stored already."""

from __future__ import annotations

from routereplay.sidecar.store.base import RecordKey
from routereplay.wire.errors import (
    LimitReached,
    RecordConflict,
    RouteReplayError,
    RoutesDeleted,
    RoutesDropped,
    UploadIncomplete,
)
from routereplay.wire.records import FrameResult


def refused(error: RouteReplayError) -> FrameResult:
    """Return the result of a frame that is refused."""
    return FrameResult(status="refused", code=error.code, message=error.message)


def conflict(key: RecordKey) -> RecordConflict:
    """Return the error of a seal whose record was sealed with other content."""
    msg = (
        f"seal ({key.request_id}, choice {key.choice}): other content is sealed under this "
        "key; what is stored stays"
    )
    return RecordConflict(msg, request_id=key.request_id, choice=key.choice)


def refusal(outcome: str, what: str, key: RecordKey) -> RouteReplayError:
    """Return the error for what the index answered to a chunk or a seal."""
    where = f"{what} ({key.request_id}, choice {key.choice})"
    match outcome:
        case "conflict":
            return RecordConflict(f"{where}: other content is stored here; what is stored stays")
        case "incomplete":
            return UploadIncomplete(f"{where}: a staged chunk expired before the seal")
        case "deleted":
            return RoutesDeleted(f"{where}: the record was deleted and does not come back")
        case "too_many" | "too_long":
            more = "bytes" if outcome == "too_long" else "requests"
            return LimitReached(f"{where}: its trajectory has brought as many {more} as one may")
        case "dropped":
            return RoutesDropped(f"{where}: the recorder gave this upload up before")
    msg = f"{where}: the index answered {outcome!r}"
    raise ValueError(msg)
