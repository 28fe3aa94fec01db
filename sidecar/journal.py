"""What happened lately: a bounded list of seals, drops and deletions, for people to look at.

It is a view and holds nothing that a reader of routes needs. Writing costs a request an
append to a list; a task brings the list to the engine about once a second, and what cannot
be written is counted and forgotten. Reading costs what is new since the last reader.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from routereplay.sidecar.metrics import Metrics
from routereplay.sidecar.periodic import Periodic
from routereplay.wire.errors import RouteReplayError
from routereplay.wire.frame import Frame
from routereplay.wire.ids import normalize_id
from routereplay.wire.records import Drop, FrameResult, Seal

logger = logging.getLogger(__name__)

MAX_EVENTS = 4096
"""Events that are kept, here and in the engine; older ones fall off."""
FLUSH_EVERY_S = 1.0


class Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One choice of a request was sealed, dropped or deleted."""

    kind: Literal["sealed", "dropped", "deleted"]
    at: float
    """Unix seconds."""
    request_id: str
    choice: int = 0
    trajectory_id: str | None = None
    engine_id: str = ""
    model: str = ""
    tokens: int = 0
    """Prompt and completion."""
    rows: int = 0
    """Rows sealed or lost."""
    nbytes: int = 0
    complete: bool = True
    policy_versions: tuple[str, ...] = ()
    reason: str = ""
    """Why it was dropped."""
    invalid: tuple[str, ...] = ()
    """What the recorder's watch saw in its rows that real routes never show."""


class Bucket(NamedTuple):
    """What was sealed in `[start, stop)`, Unix seconds."""

    start: float
    stop: float
    records: int
    rows: int
    nbytes: int


class EventLog(Protocol):
    """Where events are kept, beside the index; every method may raise `StoreUnavailable`."""

    async def append(self, events: Sequence[Event]) -> None:
        """Add events, drop the oldest beyond `MAX_EVENTS`, and count the sealed ones."""

    async def read(self, after: str) -> tuple[list[Event], str, bool]:
        """Return the events after a position, the new position, and whether the log is whole.

        It is not if its engine lost it since: what was read before is no longer there.
        """

    async def sealed(self, now: float) -> list[Bucket]:
        """Return what was sealed within the life of a record, in order of time."""


class Journal:
    """The events of all sidecars of one engine; written by a task, read by who asks."""

    def __init__(self, log: EventLog, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics
        self._waiting: deque[Event] = deque()
        self._seen: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._position = ""
        self._reading = asyncio.Lock()
        self._writing = Periodic(self.flush, FLUSH_EVERY_S)

    def start(self) -> None:
        """Begin to write what is noted; called on the event loop."""
        self._writing.start()

    async def stop(self) -> None:
        """Write what is left, if the engine takes it."""
        await self._writing.stop()
        await self.flush()

    def note(self, event: Event) -> None:
        """Take one event; it is written later."""
        if len(self._waiting) == MAX_EVENTS:
            self._waiting.popleft()
            self._metrics.events_lost.inc()
        self._waiting.append(event)

    def note_frame(self, frame: Frame, outcome: FrameResult) -> None:
        """Take an ingested frame, if it changed what a record is."""
        match frame.header:
            case Seal() as seal if outcome.status == "sealed":
                self.note(_sealed(seal))
            case Drop() as drop if outcome.status == "noted":
                self.note(_dropped(drop))

    async def flush(self) -> None:
        """Write what is noted; what the engine does not take waits for the next time."""
        events = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not events:
            return
        try:
            await self._log.append(events)
        except RouteReplayError as error:
            logger.info("recent events are not written yet: %s", error)
            self._waiting.extendleft(reversed(events))

    async def recent(self) -> list[Event]:
        """Return the events that are kept, oldest first; at most `MAX_EVENTS`."""
        async with self._reading:
            await self.flush()
            found, position, is_whole = await self._log.read(self._position)
            if not is_whole:
                self._seen.clear()
            self._seen.extend(found)
            self._position = position
            return list(self._seen)

    async def sealed(self) -> list[Bucket]:
        """Return what was sealed within the life of a record, in order of time."""
        return await self._log.sealed(time.time())


def _sealed(seal: Seal) -> Event:
    manifest = seal.manifest
    return Event(
        kind="sealed",
        at=time.time(),
        request_id=normalize_id(manifest.request_id),
        choice=manifest.choice,
        trajectory_id=manifest.trajectory_id,
        engine_id=manifest.engine_id[:80],
        model=manifest.model[:200],
        tokens=manifest.num_tokens,
        rows=manifest.rows,
        nbytes=manifest.rows * manifest.row_nbytes,
        complete=manifest.complete,
        invalid=tuple(reason[:80] for reason in manifest.invalid[:8]),
        policy_versions=tuple(
            dict.fromkeys(span.version[:80] for span in manifest.policy_versions[:8])
        ),
    )


def _dropped(drop: Drop) -> Event:
    return Event(
        kind="dropped",
        at=time.time(),
        request_id=normalize_id(drop.request_id),
        choice=drop.choice,
        trajectory_id=drop.trajectory_id,
        engine_id=drop.engine_id[:80],
        rows=drop.rows,
        reason=drop.reason[:200],
    )
