"""The read side: slices of records and trajectories, hashed and ready to be sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

from routereplay.sidecar.describe import turn_status
from routereplay.sidecar.lookup import require_sealed
from routereplay.sidecar.reading import (
    INLINE_BYTES,
    Piece,
    Range,
    Slice,
    cut,
    pieces,
    placed,
    read_rows,
    read_tokens,
)
from routereplay.sidecar.room import Room
from routereplay.sidecar.store.base import Blobs, RecordStatus, StoredRecord
from routereplay.sidecar.store.windows import windows
from routereplay.wire.digest import Buffer, RunningDigest, digest
from routereplay.wire.errors import CorruptRecord, RouteReplayError, RoutesExpired
from routereplay.wire.frame import aligned, encode_head, padding
from routereplay.wire.lineage import Link, TurnSpan, link_turns
from routereplay.wire.records import (
    FetchedTrajectory,
    FetchFailure,
    RecordManifest,
    Routes,
    RoutesItem,
    RowSource,
    TurnStatus,
)

KEEP_BYTES = 64 * 1024 * 1024
"""Longest payload that is kept between hashing and sending; of a longer one rows are read twice."""

_room = Room(4 * KEEP_BYTES)


@dataclass(slots=True)
class Ready:
    """Rows of a record, whose every byte was verified once."""

    manifest: RecordManifest
    parts: list[Slice]
    """Where the rows are, in order and without a gap: more than one for a delta."""
    tokens: memoryview
    parent: int | None
    rows_digest: bytes = b""

    @property
    def token_start(self) -> int:
        """Token index of the first row."""
        return self.parts[0].token_start

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(part.nbytes for part in self.parts)

    @property
    def layer_start(self) -> int:
        """First layer, from 0."""
        return self.parts[0].layer_start

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.parts[0].layers

    @property
    def pieces(self) -> list[Piece]:
        """The chunks that its rows are in."""
        return [piece for part in self.parts for piece in pieces(part)]


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

    Records and trajectories are added, then their rows are loaded: all of them side by side,
    into the memory that is sent.
    """

    blobs: Blobs
    failures: list[FetchFailure] = field(default_factory=list)
    _entries: list[_Entry] = field(default_factory=list)
    _kept: memoryview | None = None
    """The payload."""

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
            errors = await self._read()
            if not errors:
                return
            if not failures_are_listed:
                raise next(iter(errors.values()))
            for entry in self._entries:
                if id(entry) in errors:
                    self.add_failure(entry.name, errors[id(entry)])
            self._entries = [entry for entry in self._entries if id(entry) not in errors]

    async def _read(self) -> dict[int, RouteReplayError]:
        """Read all rows; return the error of each entry that has one, by its identity."""
        offsets, nbytes = self._layout()
        kept = _room.take(nbytes) if nbytes <= KEEP_BYTES else None
        owners: list[_Entry] = []
        if kept is None:
            return await self._hash()
        wanted: list[Piece] = []
        for entry in self._entries:
            for ready in entry.items:
                rows_at, tokens_at = offsets[len(owners)]
                _fill(kept, rows_at + ready.nbytes, ready.tokens, tokens_at)
                wanted += placed(ready.pieces, kept[rows_at:])
                owners.append(entry)
        owner_of = [
            owner
            for owner, ready in zip(owners, self.items, strict=True)
            for _ in range(len(ready.pieces))
        ]
        errors = await read_rows(self.blobs, wanted)
        if errors:
            return {id(owner_of[number]): error for number, error in errors.items()}
        for ready, (rows_at, _) in zip(self.items, offsets, strict=True):
            await _hash_rows(ready, kept[rows_at : rows_at + ready.nbytes])
        self._kept = kept.toreadonly()
        return {}

    async def _hash(self) -> dict[int, RouteReplayError]:
        """Read rows that are too many to keep, for their digests."""
        for entry in self._entries:
            for ready in entry.items:
                hasher = RunningDigest()
                try:
                    async for buffer in self._stream(ready):
                        await asyncio.to_thread(hasher.update, buffer)
                except (CorruptRecord, RoutesExpired) as error:
                    return {id(entry): error}
                ready.rows_digest = hasher.digest()
        return {}

    async def rows(self, ready: Ready) -> AsyncIterator[Buffer]:
        """Yield the rows of an item."""
        if self._kept is None:
            async for buffer in self._stream(ready):
                yield buffer
            return
        number = next(i for i, item in enumerate(self.items) if item is ready)
        rows_at, _ = self._layout()[0][number]
        yield self._kept[rows_at : rows_at + ready.nbytes]

    async def _stream(self, ready: Ready) -> AsyncIterator[Buffer]:
        for window in windows(ready.pieces, lambda piece: piece.nbytes):
            memory = np.empty(sum(piece.nbytes for piece in window), np.uint8)
            for error in (await read_rows(self.blobs, placed(window, memory.data))).values():
                raise error
            yield memory.data

    def head(self) -> tuple[bytes, int]:
        """Return the frame up to its payload, and the bytes of the payload."""
        offsets, nbytes = self._layout()
        header = Routes(
            items=tuple(
                _item(ready, *offset) for ready, offset in zip(self.items, offsets, strict=True)
            ),
            trajectories=tuple(self.trajectories),
            failures=tuple(self.failures),
        )
        return encode_head(header, nbytes), nbytes

    @property
    def kept(self) -> memoryview | None:
        """The whole payload, if it is not too long to be kept."""
        return self._kept

    async def payload(self) -> AsyncIterator[Buffer]:
        """Yield the payload as `head` describes it; a multiple of 64 bytes."""
        if self._kept is not None:
            yield self._kept
            return
        for ready in self.items:
            async for buffer in self._stream(ready):
                yield buffer
            yield padding(ready.nbytes)
            yield ready.tokens
            yield padding(len(ready.tokens))

    def _layout(self) -> tuple[list[tuple[int, int]], int]:
        """Return where each item's rows and tokens begin, and the bytes of the payload."""
        offsets, offset = [], 0
        for ready in self.items:
            tokens_at = aligned(offset + ready.nbytes)
            offsets.append((offset, tokens_at))
            offset = aligned(tokens_at + len(ready.tokens))
        return offsets, offset


async def _hash_rows(ready: Ready, rows: memoryview) -> None:
    found = ready.pieces
    if len(found) == 1 and found[0].is_whole:
        # What was verified is what is sent.
        ready.rows_digest = found[0].part.manifest.chunks[found[0].seq].digest
    elif len(rows) > INLINE_BYTES:
        ready.rows_digest = await asyncio.to_thread(digest, rows)
    else:
        ready.rows_digest = digest(rows)


def _fill(payload: memoryview, rows_stop: int, tokens: memoryview, tokens_at: int) -> None:
    """Write an item's token ids and the padding around them."""
    stop = tokens_at + len(tokens)
    payload[rows_stop:tokens_at] = bytes(tokens_at - rows_stop)
    payload[tokens_at:stop] = tokens
    payload[stop : aligned(stop)] = padding(stop)


def _item(ready: Ready, rows_offset: int, tokens_offset: int) -> RoutesItem:
    return RoutesItem(
        manifest=ready.manifest,
        token_start=ready.token_start,
        rows=ready.rows,
        layer_start=ready.layer_start,
        layers=ready.layers,
        rows_offset=rows_offset,
        rows_nbytes=ready.nbytes,
        rows_digest=ready.rows_digest,
        tokens_offset=tokens_offset,
        tokens_nbytes=len(ready.tokens),
        parent=ready.parent,
        sources=sources_of(ready),
    )


def sources_of(ready: Ready) -> tuple[RowSource, ...]:
    """Return whose rows these are, or nothing if they are the record's own."""
    own = ready.manifest.request_id, ready.manifest.choice
    sources = [
        RowSource(
            request_id=part.key.request_id,
            choice=part.key.choice,
            token_start=part.token_start,
            rows=part.rows,
        )
        for part in ready.parts
    ]
    named = [(source.request_id, source.choice) for source in sources]
    return () if named == [own] else tuple(sources)


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
