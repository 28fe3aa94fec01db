"""The read side: slices of records and trajectories, hashed and ready to be sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

from routereplay.sidecar.describe import turn_status
from routereplay.sidecar.lookup import require_sealed
from routereplay.sidecar.reading import Range, Slice, cut, read_rows, read_tokens
from routereplay.sidecar.store.base import Blobs, RecordStatus, StoredRecord
from routereplay.wire.digest import Buffer, RunningDigest
from routereplay.wire.errors import RouteReplayError
from routereplay.wire.frame import aligned, encode_head, padding
from routereplay.wire.lineage import Link, TurnSpan, link_turns
from routereplay.wire.records import (
    FetchedTrajectory,
    FetchFailure,
    RecordManifest,
    Routes,
    RoutesItem,
    RowSource,
)

KEEP_BYTES = 8 * 1024 * 1024
"""Bytes of a response that are kept between hashing and sending; the rest is read twice."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Rows of a record, whose every byte was verified once."""

    manifest: RecordManifest
    parts: list[Slice]
    """Where the rows are, in order and without a gap: more than one for a delta."""
    tokens: bytes
    rows_digest: bytes
    parent: int | None
    kept: list[Buffer] | None
    """Its rows, or None if they are read again while they are sent."""

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
        return self.parts[0].layer_stop - self.layer_start


@dataclass(slots=True)
class Response:
    """What one answer holds; the order of items is the order of the payload."""

    blobs: Blobs
    items: list[Ready] = field(default_factory=list)
    trajectories: list[FetchedTrajectory] = field(default_factory=list)
    failures: list[FetchFailure] = field(default_factory=list)
    room: int = KEEP_BYTES

    async def add_record(self, status: RecordStatus, parts: list[Slice]) -> None:
        """Add the rows of one sealed record, from it and the records that it is a delta on."""
        record = _sealed(status)
        token_ids = await read_tokens(self.blobs, status.key, record)
        self.items.append(await self._ready(record.manifest, parts, token_ids, None))

    async def add_trajectory(
        self,
        trajectory_id: str,
        turns: list[RecordStatus],
        tokens: Range | None,
        layers: Range | None,
    ) -> None:
        """Add a trajectory: of each sealed turn only the rows that no earlier turn supplies."""
        require_sealed(turns)
        sealed = [(turn, _sealed(turn)) for turn in turns if turn.state == "sealed"]
        token_ids = [await read_tokens(self.blobs, turn.key, record) for turn, record in sealed]
        links = await asyncio.to_thread(_link, [record for _, record in sealed], token_ids)
        ready = []
        for (turn, record), ids, link in zip(sealed, token_ids, links, strict=True):
            start, stop = tokens or (0, None)
            part = cut(turn.key, record, (max(start, link.new_from), stop), layers)
            ready.append(await self._ready(record.manifest, [part], ids, link.parent))
        first = len(self.items)
        self.items.extend(ready)
        self.trajectories.append(
            FetchedTrajectory(
                trajectory_id=trajectory_id,
                turns=tuple(turn_status(turn) for turn in turns),
                items=tuple(range(first, first + len(ready))),
            )
        )

    def add_failure(self, name: str, error: RouteReplayError) -> None:
        """Add an id that cannot be served."""
        self.failures.append(FetchFailure(id=name, code=error.code, message=error.message))

    async def _ready(
        self, manifest: RecordManifest, parts: list[Slice], tokens: bytes, parent: int | None
    ) -> Ready:
        # The digest stands before the rows in the frame, so rows are read to hash them;
        # what is too long to keep is read again when its turn to be sent has come.
        hasher = RunningDigest()
        nbytes = sum(part.nbytes for part in parts)
        kept: list[Buffer] | None = [] if nbytes <= self.room else None
        for part in parts:
            async for buffer in read_rows(self.blobs, part):
                hasher.update(buffer)
                if kept is not None:
                    kept.append(buffer)
        if kept is not None:
            self.room -= nbytes
        return Ready(manifest, parts, tokens, hasher.digest(), parent, kept)

    async def rows(self, ready: Ready) -> AsyncIterator[Buffer]:
        """Yield the rows of an item."""
        if ready.kept is not None:
            for buffer in ready.kept:
                yield buffer
        else:
            for part in ready.parts:
                async for buffer in read_rows(self.blobs, part):
                    yield buffer

    @property
    def is_kept(self) -> bool:
        """Whether sending it needs no engine any more."""
        return all(ready.kept is not None for ready in self.items)

    def head(self) -> tuple[bytes, int]:
        """Return the frame up to its payload, and the bytes of the payload."""
        items: list[RoutesItem] = []
        offset = 0
        for ready in self.items:
            tokens_offset = aligned(offset + ready.nbytes)
            items.append(_item(ready, offset, tokens_offset))
            offset = aligned(tokens_offset + len(ready.tokens))
        header = Routes(
            items=tuple(items),
            trajectories=tuple(self.trajectories),
            failures=tuple(self.failures),
        )
        return encode_head(header, offset), offset

    async def payload(self) -> AsyncIterator[Buffer]:
        """Yield the payload as `head` describes it; a multiple of 64 bytes."""
        for ready in self.items:
            async for buffer in self.rows(ready):
                yield buffer
            yield padding(ready.nbytes)
            yield ready.tokens
            yield padding(len(ready.tokens))


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
        sources=_sources(ready),
    )


def _sources(ready: Ready) -> tuple[RowSource, ...]:
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


def _link(records: list[StoredRecord], token_ids: list[bytes]) -> list[Link]:
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
