"""Chunks on their way into the engine, many of them in two round trips."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar, cast

from routereplay.sidecar.checks import fault
from routereplay.sidecar.reading import INLINE_BYTES
from routereplay.sidecar.refusals import refusal, refused
from routereplay.sidecar.room import shared_scratch
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
from routereplay.sidecar.store.windows import windows
from routereplay.wire.digest import Buffer
from routereplay.wire.frame import Frame
from routereplay.wire.ids import normalize_id
from routereplay.wire.records import Chunk, FrameResult

T = TypeVar("T")

Values = list[tuple[str, Buffer]]
"""Values by key."""


class Arriving(NamedTuple):
    """A frame of a body."""

    number: int
    """Its position."""
    frame: Frame


class _Laid(NamedTuple):
    """A chunk that is valid in itself, and how it will be kept."""

    number: int
    key: RecordKey
    upload_id: str
    chunk: Chunk
    staged: StagedChunk
    values: list[memoryview]


@dataclass(slots=True)
class Arrived:
    """What one run of frames has brought so far."""

    results: dict[int, FrameResult]
    """Of the body, by position of the frame."""
    chunks: defaultdict[tuple[str, str], dict[int, StagedChunk]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """What was staged, by tag and upload, by position in the upload."""
    tokens: set[str] = field(default_factory=set)
    """Keys of the token ids that were stored with chunks."""
    leads: dict[Lead, Pointer] = field(default_factory=dict)
    """The names that were claimed, and where they lead."""


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
        """Check and stage chunks, in order, and add what became of them to `arrived`.

        A window of them at a time: laid out, noted, and only then stored, as what is too
        much or at odds with what is there must not take memory of the engine.

        Args:
            arriving: the chunks.
            arrived: what is known of their body.
            more: asked for values to store with the last ones, once these are noted.
        """
        for number, window in enumerate(found := list(windows(arriving, _nbytes)), 1):
            nbytes = sum(map(_nbytes, window))
            with shared_scratch.lent(nbytes) as scratch:
                # The values are in it until they are put.
                work = partial(self._lay_out, window, scratch, arrived)
                laid = await offloaded(nbytes, work)
                values = await self._note(laid, arrived)
                if number == len(found):
                    values += more()
                await self._blobs.put(values, self._staging_ttl_s)

    def _lay_out(
        self, window: Sequence[Arriving], scratch: memoryview, arrived: Arrived
    ) -> list[_Laid]:
        """Return what is valid; each chunk is hashed, looked at and copied while it is at hand."""
        laid = []
        for number, frame in window:
            chunk, payload = cast("Chunk", frame.header), frame.payload
            if wrong := fault(frame):
                arrived.results[number] = refused(wrong)
                continue
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
            key = keys.record_key(self._namespace, chunk)
            laid.append(_Laid(number, key, normalize_id(chunk.upload_id), chunk, staged, values))
        return laid

    async def _note(self, laid: Sequence[_Laid], arrived: Arrived) -> Values:
        """Note chunks in the index and return the values of those that it takes."""
        if not laid:
            return []
        entry = Entry(started_at=time.time())
        chunks = [Staging(one.key, one.upload_id, one.chunk.seq, one.staged, entry) for one in laid]
        # With every chunk, as any of them may be the first to arrive; once in a body is enough.
        named = dict.fromkeys(
            lead
            for one in laid
            for lead in keys.leads_to(self._namespace, one.key, one.chunk.aliases)
        )
        leads = [lead for lead in named if lead not in arrived.leads]
        outcomes, pointers = await self._index.stage(chunks, leads)
        arrived.leads.update(zip(leads, pointers, strict=True))
        values: Values = []
        for one, outcome in zip(laid, outcomes, strict=True):
            seq = one.chunk.seq
            if outcome == "staged" or outcome == "replayed":
                arrived.results[one.number] = FrameResult(status=outcome)
            else:
                what = f"chunk {seq} of upload {one.upload_id}"
                arrived.results[one.number] = refused(refusal(outcome, what, one.key))
            if outcome == "staged":
                arrived.chunks[one.key.tag, one.upload_id][seq] = one.staged
                where = one.key.tag, one.upload_id, seq, one.staged, one.staged.layout
                pieces = parts.chunk_parts(*where)
                values += [
                    (part.key, value) for part, value in zip(pieces, one.values, strict=True)
                ]
        return values


async def offloaded(nbytes: int, work: Callable[[], T]) -> T:
    """Return what `work` on so many bytes returns.

    Hashing megabytes on the event loop would make every other client wait.
    """
    return await asyncio.to_thread(work) if nbytes > INLINE_BYTES else work()


def _nbytes(one: Arriving) -> int:
    return one.frame.payload.nbytes
