"""The write side: chunks are staged, a seal publishes them, a drop says they are lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from routereplay.sidecar.ancestry import Ancestry
from routereplay.sidecar.checks import parse_body
from routereplay.sidecar.reading import INLINE_BYTES
from routereplay.sidecar.refusals import refused
from routereplay.sidecar.sealing import Sealer
from routereplay.sidecar.staging import Arrived, Arriving, Stager, Values
from routereplay.sidecar.store import keys
from routereplay.sidecar.store.base import Blobs, Entry, Index, Lead, Pointer, RecordKey
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import RouteReplayError, StoreFull, StoreUnavailable
from routereplay.wire.frame import Frame
from routereplay.wire.ids import normalize_id
from routereplay.wire.records import Chunk, Drop, FrameResult, IngestResult, RecordManifest, Seal


class _Numbered(NamedTuple):
    """A valid frame, and its position in its body."""

    number: int
    frame: Frame


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
        if memoryview(body).nbytes > INLINE_BYTES:
            # Hashing megabytes on the event loop would make every other client wait.
            checked = await asyncio.to_thread(parse_body, body)
        else:
            checked = parse_body(body)
        results = {
            number: refused(fault) for number, (_, fault) in enumerate(checked) if fault is not None
        }
        valid = [
            _Numbered(number, frame)
            for number, (frame, fault) in enumerate(checked)
            if fault is None
        ]
        for run in _runs(valid):
            results |= await self._store(run)
        in_order = tuple(results[number] for number in range(len(checked)))
        return IngestResult(results=in_order), [frame for frame, _ in checked]

    async def _store(self, run: Sequence[_Numbered]) -> dict[int, FrameResult]:
        """Store a run: all chunks, then the seals and the drop that follow them."""
        arrived = Arrived()
        arriving = [
            Arriving(number, self._key(chunk), chunk, payload)
            for number, (chunk, payload) in run
            if isinstance(chunk, Chunk)
        ]
        sealing = [
            (number, header, self._key(header.manifest), payload)
            for number, (header, payload) in run
            if isinstance(header, Seal)
        ]

        def tokens() -> Values:
            # Of what is sealed with the same body, one round trip earlier.
            return [
                value
                for _, seal, key, payload in sealing
                for value in self._sealer.tokens(key, seal, payload, arrived)
            ]

        await self._stager.stage(arriving, arrived, tokens)
        results = arrived.results
        for number, seal, key, payload in sealing:
            try:
                results[number] = await self._sealer.seal(key, seal, payload, arrived)
            except (StoreUnavailable, StoreFull):
                raise
            except RouteReplayError as error:
                results[number] = refused(error)
        # A drop is the last of its run.
        number, (header, _) = run[-1]
        if isinstance(header, Drop):
            results[number] = await self._drop(header)
        return results

    async def _drop(self, drop: Drop) -> FrameResult:
        key = self._key(drop)
        started_at = drop.started_at or time.time()
        entry = Entry(drop.engine_id, drop.ordinal, started_at, drop.reason, drop.rows)
        pointer = Pointer(key.tag, key.request_id)
        names = (key.request_id, *drop.aliases)
        await self._index.claim(
            [Lead(keys.name_of(self._namespace, one), pointer) for one in names]
        )
        await self._index.drop(key, normalize_id(drop.upload_id), entry)
        return FrameResult(status="noted")

    def _key(self, of: Chunk | Drop | RecordManifest) -> RecordKey:
        tag = keys.tag_of(self._namespace, of.request_id, of.trajectory_id)
        return RecordKey(tag, of.request_id, of.choice)


def _runs(valid: Sequence[_Numbered]) -> Iterator[list[_Numbered]]:
    """Yield frames in runs whose chunks may be stored before all else in them.

    A run ends with a drop, and before a chunk of an upload that it seals.
    """
    run: list[_Numbered] = []
    sealed: set[str] = set()
    for one in valid:
        header = one.frame.header
        if isinstance(header, Chunk) and header.upload_id in sealed:
            yield run
            run, sealed = [], set()
        run.append(one)
        if isinstance(header, Seal):
            sealed.add(header.upload_id)
        elif isinstance(header, Drop):
            yield run
            run, sealed = [], set()
    if run:
        yield run
