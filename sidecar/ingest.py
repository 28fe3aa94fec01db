"""The write side: chunks are staged, a seal publishes them, a drop says they are lost."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import cast

from routereplay.sidecar.ancestry import Ancestry
from routereplay.sidecar.checks import fault, frames_of
from routereplay.sidecar.refusals import refused
from routereplay.sidecar.sealing import Sealer
from routereplay.sidecar.staging import Arrived, Arriving, Stager, Values, offloaded
from routereplay.sidecar.store import keys
from routereplay.sidecar.store.base import Blobs, Entry, Index
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import RouteReplayError, StoreFull, StoreUnavailable
from routereplay.wire.frame import Frame
from routereplay.wire.ids import normalize_id
from routereplay.wire.records import Chunk, Drop, FrameResult, IngestResult, Seal

_FRAMES_INLINE = 64
"""More frames than this are told apart beside the event loop."""


class Ingest:
    """Stores what recorders send. Every step may be repeated with the same bytes."""

    def __init__(
        self,
        blobs: Blobs,
        index: Index,
        ancestry: Ancestry,
        *,
        namespace: str,
        value_bytes: int,
        staging_ttl_s: int,
    ) -> None:
        self._index = index
        self._namespace = namespace
        self._stager = Stager(
            blobs,
            index,
            namespace=namespace,
            value_bytes=value_bytes,
            staging_ttl_s=staging_ttl_s,
        )
        self._sealer = Sealer(
            blobs,
            index,
            ancestry,
            namespace=namespace,
            value_bytes=value_bytes,
            staging_ttl_s=staging_ttl_s,
        )

    async def ingest(self, body: Buffer) -> tuple[IngestResult, list[Frame]]:
        """Store the frames of one body, in order; return a result for each of them.

        Raises:
            MalformedFrame, UnsupportedWireVersion: nothing of the body was stored.
            StoreUnavailable, StoreFull: send the whole body again.
        """
        unread = frames_of(body)
        frames = list(itertools.islice(unread, _FRAMES_INLINE))
        if len(frames) == _FRAMES_INLINE:
            frames += await asyncio.to_thread(list, unread)
        results: dict[int, FrameResult] = {}
        for run in _runs(frames):
            await self._store(run, Arrived(results))
        in_order = tuple(results[number] for number in range(len(frames)))
        return IngestResult(results=in_order), frames

    async def _store(self, run: Sequence[Arriving], arrived: Arrived) -> None:
        """Store a run: all chunks, then the seals and the drop that follow them."""
        sealing = [one for one in run if isinstance(one.frame.header, Seal)]
        sealing = await self._sound(sealing, arrived)

        def tokens() -> Values:
            # Of what is sealed with the same body, one round trip earlier.
            return [value for one in sealing for value in self._sealer.tokens(one, arrived)]

        chunks = [one for one in run if isinstance(one.frame.header, Chunk)]
        await self._stager.stage(chunks, arrived, tokens)
        for one in sealing:
            try:
                arrived.results[one.number] = await self._sealer.seal(one, arrived)
            except (StoreUnavailable, StoreFull):
                raise
            except RouteReplayError as error:
                arrived.results[one.number] = refused(error)
        # A drop is the last of its run.
        if isinstance(run[-1].frame.header, Drop):
            for one in await self._sound(run[-1:], arrived):
                arrived.results[one.number] = await self._drop(cast("Drop", one.frame.header))

    async def _sound(self, found: Sequence[Arriving], arrived: Arrived) -> list[Arriving]:
        """Return those with which nothing is wrong; the others are refused."""
        nbytes = sum(one.frame.payload.nbytes for one in found)
        faults = await offloaded(nbytes, lambda: [fault(one.frame) for one in found])
        for one, wrong in zip(found, faults, strict=True):
            if wrong is not None:
                arrived.results[one.number] = refused(wrong)
        return [one for one, wrong in zip(found, faults, strict=True) if wrong is None]

    async def _drop(self, drop: Drop) -> FrameResult:
        key = keys.record_key(self._namespace, drop)
        started_at = drop.started_at or time.time()
        entry = Entry(drop.engine_id, drop.ordinal, started_at, drop.reason, drop.rows)
        await self._index.claim(keys.leads_to(self._namespace, key, drop.aliases))
        await self._index.drop(key, normalize_id(drop.upload_id), entry)
        return FrameResult(status="noted")


def _runs(frames: Sequence[Frame]) -> Iterator[list[Arriving]]:
    """Yield frames in runs whose chunks may be stored before all else in them.

    A run ends with a drop, and before a chunk of an upload that it seals.
    """
    run: list[Arriving] = []
    sealed: set[str] = set()
    for number, frame in enumerate(frames):
        header = frame.header
        if isinstance(header, Chunk) and header.upload_id in sealed:
            yield run
            run, sealed = [], set()
        run.append(Arriving(number, frame))
        if isinstance(header, Seal):
            sealed.add(header.upload_id)
        elif isinstance(header, Drop):
            yield run
            run, sealed = [], set()
    if run:
        yield run
