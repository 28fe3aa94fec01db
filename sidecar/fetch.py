"""What one answer holds: records and trajectories, and what of them could not be served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from routereplay.sidecar.describe import turn_status
from routereplay.sidecar.lookup import require_sealed
from routereplay.sidecar.payload import Payload
from routereplay.sidecar.reading import INLINE_BYTES, TokenIds, read_tokens
from routereplay.sidecar.ready import Ready, routes_item
from routereplay.sidecar.slices import Range, Slice, cut
from routereplay.sidecar.store.base import Blobs, RecordStatus, StoredRecord
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import RouteReplayError
from routereplay.wire.frame import encode_head
from routereplay.wire.lineage import TurnSpan, link_turns
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

    def add_record(self, status: RecordStatus, parts: list[Slice], name: str = "") -> None:
        """Add the rows of one sealed record, from it and the records that it is a delta on."""
        self._entries.append(_Entry(name, [Ready(status.key, _sealed(status), parts, None)]))

    async def token_ids(self, found: Iterable[Sequence[RecordStatus]]) -> list[Iterator[TokenIds]]:
        """Return the token ids of the sealed turns of trajectories, all read together."""
        sealed = [
            [(turn.key, _sealed(turn)) for turn in turns if turn.state == "sealed"]
            for turns in found
        ]
        token_ids = iter(await read_tokens(self.blobs, [one for turns in sealed for one in turns]))
        return [iter(list(islice(token_ids, len(turns)))) for turns in sealed]

    async def add_trajectory(
        self,
        trajectory_id: str,
        turns: Sequence[RecordStatus],
        token_ids: Iterable[TokenIds],
        tokens: Range | None,
        layers: Range | None,
    ) -> None:
        """Add a trajectory: of each sealed turn only the rows that no earlier turn supplies.

        Raises:
            CorruptRecord, RoutesExpired: of token ids that could not be read.
        """
        require_sealed(turns)
        sealed = [(turn.key, _sealed(turn)) for turn in turns if turn.state == "sealed"]
        padded = [_intact(ids) for ids in token_ids]
        spans = [_span(record, ids) for (_, record), ids in zip(sealed, padded, strict=True)]
        if sum(map(len, padded)) > INLINE_BYTES:
            links = await asyncio.to_thread(link_turns, spans)
        else:
            links = link_turns(spans)
        start, stop = tokens or (0, None)
        items = []
        for (key, record), ids, link in zip(sealed, padded, links, strict=True):
            part = cut(key, record, (max(start, link.new_from), stop), layers)
            items.append(Ready(key, record, [part], ids, link.parent))
        statuses = tuple(map(turn_status, turns))
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


def _intact(ids: TokenIds) -> memoryview:
    if isinstance(ids, RouteReplayError):
        raise ids
    return ids


def _span(record: StoredRecord, padded_tokens: memoryview) -> TurnSpan:
    manifest = record.manifest
    ids = np.frombuffer(padded_tokens, "<i4", manifest.num_tokens)
    return TurnSpan(ids, manifest.row_start, manifest.row_start + manifest.rows)
