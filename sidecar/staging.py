"""Chunks on their way into the engine, many of them in two round trips."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from routereplay.sidecar.reading import INLINE_BYTES
from routereplay.sidecar.refusals import refusal, refused
from routereplay.sidecar.room import Scratch
from routereplay.sidecar.store import keys, parts
from routereplay.sidecar.store.bands import lay_out
from routereplay.sidecar.store.base import (
    Blobs,
    Entry,
    Index,
    Lead,
    Pointer,
    RecordKey,
    StagedChunk,
    Staging,
)
from routereplay.sidecar.store.windows import WINDOW_BYTES, windows
from routereplay.wire.digest import Buffer
from routereplay.wire.ids import normalize_id
from routereplay.wire.records import Chunk, FrameResult

_scratch = Scratch(2, 2 * WINDOW_BYTES)

Values = list[tuple[str, Buffer]]
"""Values by key."""


class Arriving(NamedTuple):
    """A chunk of a body, valid in itself."""

    number: int
    """Position of its frame in the body."""
    key: RecordKey
    chunk: Chunk
    payload: memoryview


@dataclass(slots=True)
class Arrived:
    """What one body has brought so far."""

    results: dict[int, FrameResult] = field(default_factory=dict)
    """Of its chunks, by position of the frame."""
    chunks: defaultdict[tuple[str, str], dict[int, StagedChunk]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """What this body staged, by tag and upload, by position in the upload."""
    tokens: set[str] = field(default_factory=set)
    """Keys of the token ids that were stored with chunks."""
    leads: dict[Lead, Pointer] = field(default_factory=dict)
    """The names that it claimed, and where they lead."""


class Stager:
    """Stages the chunks of bodies of one namespace."""

    def __init__(
        self, blobs: Blobs, index: Index, *, namespace: str, value_bytes: int, staging_ttl_s: int
    ) -> None:
        self._blobs = blobs
        self._index = index
        self._namespace = namespace
        self._value_bytes = value_bytes
        self._staging_ttl_s = staging_ttl_s

    async def stage(
        self, arriving: Sequence[Arriving], arrived: Arrived, more: Callable[[], Values]
    ) -> None:
        """Stage chunks, in order, and add what became of them to `arrived`.

        A window of them at a time: laid out, noted, and only then stored, as what is too
        much or at odds with what is there must not take memory of the engine.

        Args:
            arriving: the chunks.
            arrived: what is known of their body.
            more: asked for values to store with the last ones, once these are noted.
        """
        for number, window in enumerate(found := list(windows(arriving, _nbytes)), 1):
            nbytes = sum(one.payload.nbytes for one in window)
            with _scratch.lent(nbytes) as scratch:
                # The values are in it until they are put.
                if nbytes > INLINE_BYTES:
                    laid = await asyncio.to_thread(self._lay_out, window, scratch)
                else:
                    laid = self._lay_out(window, scratch)
                values = await self._note(window, laid, arrived)
                if number == len(found):
                    values += more()
                await self._blobs.put(values, self._staging_ttl_s)

    def _lay_out(
        self, window: Sequence[Arriving], scratch: memoryview
    ) -> list[tuple[StagedChunk, list[memoryview]]]:
        laid = []
        for _, _, chunk, payload in window:
            layout, values = lay_out(chunk, payload, self._value_bytes, scratch)
            scratch = scratch[payload.nbytes :]
            staged = StagedChunk(
                chunk.first_row,
                chunk.rows,
                payload.nbytes,
                chunk.digest,
                layout,
                chunk.num_layers,
                chunk.topk,
                chunk.num_experts,
                chunk.dtype,
            )
            laid.append((staged, values))
        return laid

    async def _note(
        self,
        window: Sequence[Arriving],
        laid: Sequence[tuple[StagedChunk, list[memoryview]]],
        arrived: Arrived,
    ) -> Values:
        """Note chunks in the index and return the values of those that it takes."""
        entry = Entry(started_at=time.time())
        uploads = [normalize_id(one.chunk.upload_id) for one in window]
        chunks = [
            Staging(one.key, upload_id, one.chunk.seq, staged, entry)
            for one, upload_id, (staged, _) in zip(window, uploads, laid, strict=True)
        ]
        # With every chunk, as any of them may be the first to arrive; once in a body is enough.
        leads = list(dict.fromkeys(lead for one in window for lead in self._leads(one)))
        leads = [lead for lead in leads if lead not in arrived.leads]
        outcomes, pointers = await self._index.stage(chunks, leads)
        arrived.leads.update(zip(leads, pointers, strict=True))
        values: Values = []
        for one, noted, outcome, (staged, laid_values) in zip(
            window, chunks, outcomes, laid, strict=True
        ):
            if outcome == "staged" or outcome == "replayed":
                arrived.results[one.number] = FrameResult(status=outcome)
            else:
                what = f"chunk {noted.seq} of upload {noted.upload_id}"
                arrived.results[one.number] = refused(refusal(outcome, what, one.key))
            if outcome == "staged":
                arrived.chunks[one.key.tag, noted.upload_id][noted.seq] = staged
                pieces = parts.chunk_parts(
                    one.key.tag, noted.upload_id, noted.seq, staged, staged.layout
                )
                values += [
                    (part.key, value) for part, value in zip(pieces, laid_values, strict=True)
                ]
        return values

    def _leads(self, one: Arriving) -> list[Lead]:
        pointer = Pointer(one.key.tag, one.key.request_id)
        return [
            Lead(keys.name_of(self._namespace, item_id), pointer)
            for item_id in (one.key.request_id, *one.chunk.aliases)
        ]


def _nbytes(one: Arriving) -> int:
    return one.payload.nbytes
