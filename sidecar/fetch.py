"""What one answer holds: records and trajectories, and what of them could not be served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

from routereplay.sidecar.describe import turn_status
from routereplay.sidecar.lookup import require_sealed
from routereplay.sidecar.payload import Payload
from routereplay.sidecar.reading import INLINE_BYTES, Range, Slice, cut, read_tokens
from routereplay.sidecar.ready import Ready, routes_item
from routereplay.sidecar.store.base import Blobs, RecordStatus, StoredRecord
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import RouteReplayError
from routereplay.wire.frame import encode_head
from routereplay.wire.lineage import Link, TurnSpan, link_turns
from routereplay.wire.records import FetchedTrajectory, FetchFailure, Routes, TurnStatus


@dataclass(slots=True)
class _Entry:
    """What was asked for under one name: a record, or a trajectory with its turns."""

    name: str
    items: list[Ready]
    trajectory_id: str = ""
    turns: tuple[TurnStatus, ...] = ()


@dataclass(slots=True)
class Response:
    """What one answer holds; the order of items is the order of the payload.

    Records and trajectories are added, then their rows are loaded.
    """

    blobs: Blobs
    failures: list[FetchFailure] = field(default_factory=list)
    _entries: list[_Entry] = field(default_factory=list)
    _payload: Payload = field(init=False)

    @property
    def items(self) -> list[Ready]:
        """All records, in order."""
        return [ready for entry in self._entries for ready in entry.items]

    @property
    def trajectories(self) -> list[FetchedTrajectory]:
        """All trajectories, in order."""
        found, first = [], 0
        for entry in self._entries:
            stop = first + len(entry.items)
            if entry.trajectory_id:
                items = tuple(range(first, stop))
                found.append(
                    FetchedTrajectory(
                        trajectory_id=entry.trajectory_id, turns=entry.turns, items=items
                    )
                )
            first = stop
        return found

    async def add_record(self, status: RecordStatus, parts: list[Slice], name: str = "") -> None:
        """Add the rows of one sealed record, from it and the records that it is a delta on."""
        record = _sealed(status)
        (tokens,) = await read_tokens(self.blobs, [(status.key, record)])
        self._entries.append(_Entry(name, [Ready(record.manifest, parts, tokens, None)]))

    async def add_trajectory(
        self,
        trajectory_id: str,
        turns: list[RecordStatus],
        tokens: Range | None,
        layers: Range | None,
    ) -> None:
        """Add a trajectory: of each sealed turn only the rows that no earlier turn supplies."""
        require_sealed(turns)
        sealed = [(turn.key, _sealed(turn)) for turn in turns if turn.state == "sealed"]
        token_ids = await read_tokens(self.blobs, sealed)
        records = [record for _, record in sealed]
        if sum(map(len, token_ids)) > INLINE_BYTES:
            links = await asyncio.to_thread(_link, records, token_ids)
        else:
            links = _link(records, token_ids)
        start, stop = tokens or (0, None)
        items = [
            Ready(
                record.manifest,
                [cut(key, record, (max(start, link.new_from), stop), layers)],
                ids,
                link.parent,
            )
            for (key, record), ids, link in zip(sealed, token_ids, links, strict=True)
        ]
        statuses = tuple(turn_status(turn) for turn in turns)
        self._entries.append(_Entry(trajectory_id, items, trajectory_id, statuses))

    def add_failure(self, name: str, error: RouteReplayError) -> None:
        """Add an id that cannot be served."""
        self.failures.append(FetchFailure(id=name, code=error.code, message=error.message))

    async def load(self, *, failures_are_listed: bool = False) -> None:
        """Read and verify every row that was added.

        Raises:
            CorruptRecord, RoutesExpired: of what fails, unless failures are listed: then it
                is taken out and all else is served.
        """
        while True:
            self._payload = Payload(self.blobs, self.items)
            errors = await self._payload.load()
            if not errors:
                return
            if not failures_are_listed:
                raise next(iter(errors.values()))
            self._take_out(errors)

    def _take_out(self, errors: dict[int, RouteReplayError]) -> None:
        """List the entries of the items that failed; an entry is served whole or not at all."""
        served, first = [], 0
        for entry in self._entries:
            stop = first + len(entry.items)
            failed = [errors[number] for number in range(first, stop) if number in errors]
            if failed:
                self.add_failure(entry.name, failed[-1])
            else:
                served.append(entry)
            first = stop
        self._entries = served

    def rows(self, number: int) -> AsyncIterator[Buffer]:
        """Yield the rows of an item, by its place in `items`."""
        return self._payload.rows(number)

    def head(self) -> tuple[bytes, int]:
        """Return the frame up to its payload, and the bytes of the payload."""
        payload = self._payload
        header = Routes(
            items=tuple(
                routes_item(ready, *offset)
                for ready, offset in zip(self.items, payload.offsets, strict=True)
            ),
            trajectories=tuple(self.trajectories),
            failures=tuple(self.failures),
        )
        return encode_head(header, payload.nbytes), payload.nbytes

    @property
    def kept(self) -> memoryview | None:
        """The whole payload, if it is not too long to be kept."""
        return self._payload.kept

    def payload(self) -> AsyncIterator[Buffer]:
        """Yield the payload as `head` describes it; a multiple of 64 bytes."""
        return self._payload.stream()


def _sealed(status: RecordStatus) -> StoredRecord:
    if status.record is None:
        msg = f"{status.key} is {status.state} and was passed on as sealed"
        raise ValueError(msg)
    return status.record


def _link(records: list[StoredRecord], token_ids: list[memoryview]) -> list[Link]:
    return link_turns(
        [
            TurnSpan(
                np.frombuffer(ids, "<i4"),
                record.manifest.row_start,
                record.manifest.row_start + record.manifest.rows,
            )
            for record, ids in zip(records, token_ids, strict=True)
        ]
    )
