"""The write side: chunks are staged, a seal publishes them, a drop says they are lost."""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

from routereplay.sidecar.ancestry import Ancestry
from routereplay.sidecar.checks import parse_body
from routereplay.sidecar.reading import INLINE_BYTES
from routereplay.sidecar.room import Scratch
from routereplay.sidecar.store import keys, parts
from routereplay.sidecar.store.bands import lay_out
from routereplay.sidecar.store.base import (
    Blobs,
    Entry,
    Index,
    Pointer,
    RecordKey,
    SealRequest,
    StagedChunk,
    StoredRecord,
)
from routereplay.wire.digest import Buffer, digest
from routereplay.wire.errors import (
    LimitReached,
    RecordConflict,
    RouteReplayError,
    RoutesDeleted,
    RoutesDropped,
    StoreFull,
    StoreUnavailable,
    UploadIncomplete,
)
from routereplay.wire.frame import Frame
from routereplay.wire.ids import normalize_id
from routereplay.wire.records import Chunk, Drop, FrameResult, IngestResult, RecordManifest, Seal

logger = logging.getLogger(__name__)

_TOKEN_BYTES = 4
_scratch = Scratch(8, 1024 * 1024)
_encode = msgspec.msgpack.Encoder().encode


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
        self._blobs = blobs
        self._index = index
        self._ancestry = ancestry
        self._namespace = namespace
        self._value_bytes = value_bytes
        self._staging_ttl_s = staging_ttl_s

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
        results = []
        led: set[str] = set()
        for frame, fault in checked:
            if fault is None:
                results.append(await self._store(frame, led))
            else:
                results.append(_refused(fault))
        return IngestResult(results=tuple(results)), [frame for frame, _ in checked]

    async def _store(self, frame: Frame, led: set[str]) -> FrameResult:
        try:
            match frame.header:
                case Chunk() as chunk:
                    return await self._stage(chunk, frame.payload, led)
                case Seal() as seal:
                    return await self._seal(seal, frame.payload)
                case Drop() as drop:
                    return await self._drop(drop)
        except (StoreUnavailable, StoreFull):
            raise
        except RouteReplayError as error:
            return _refused(error)
        msg = f"no rule to ingest a {type(frame.header).__name__}"
        raise TypeError(msg)

    async def _stage(self, chunk: Chunk, payload: memoryview, led: set[str]) -> FrameResult:
        with _scratch.lent(payload.nbytes) as scratch:
            # The values are in it until they are put.
            return await self._stage_in(scratch, chunk, payload, led)

    async def _stage_in(
        self, scratch: memoryview, chunk: Chunk, payload: memoryview, led: set[str]
    ) -> FrameResult:
        key = self._key(chunk.request_id, chunk.trajectory_id, chunk.choice)
        upload_id = normalize_id(chunk.upload_id)
        work = chunk, payload, self._value_bytes, scratch
        if payload.nbytes > INLINE_BYTES:
            layout, laid = await asyncio.to_thread(lay_out, *work)
        else:
            layout, laid = lay_out(*work)
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
        entry = Entry(started_at=time.time())
        outcome = await self._index.stage(key, upload_id, chunk.seq, staged, entry)
        if outcome == "replayed":
            return FrameResult(status="replayed")
        if outcome != "staged":
            raise _refusal(outcome, f"chunk {chunk.seq} of upload {upload_id}", key)
        await self._lead(key, chunk.aliases, led)
        pieces = parts.chunk_parts(key.tag, upload_id, chunk.seq, staged, layout)
        values = [(part.key, value) for part, value in zip(pieces, laid, strict=True)]
        await self._blobs.put(values, self._staging_ttl_s)
        return FrameResult(status="staged")

    async def _lead(self, key: RecordKey, aliases: tuple[str, ...], led: set[str]) -> None:
        """Lead a request's names to what is staged of it; once in a body is enough."""
        # With every chunk, as any of them may be the first to arrive.
        pointer = Pointer(key.tag, key.request_id)
        for item_id in (key.request_id, *aliases):
            name = keys.name_of(self._namespace, item_id)
            if f"{name} {key.tag}" in led:
                continue
            led.add(f"{name} {key.tag}")
            if await self._index.locate(name) != pointer:
                await self._index.claim(name, pointer)

    async def _seal(self, seal: Seal, payload: memoryview) -> FrameResult:
        manifest = seal.manifest
        key = self._key(manifest.request_id, manifest.trajectory_id, manifest.choice)
        upload_id = normalize_id(seal.upload_id)
        content = _content(manifest)
        sealed = await self._index.content(key)
        if sealed == content:
            return FrameResult(status="replayed")
        if sealed is not None:
            raise _conflict(key)
        chunks = _match(manifest, await self._index.staged(key.tag, upload_id))
        if not seal.orphan:
            await self._ancestry.check(key, manifest)
        await self._claim(key, manifest.aliases)
        record = StoredRecord(
            manifest,
            upload_id,
            tuple(chunk.layout for chunk in chunks),
            self._value_bytes // _TOKEN_BYTES * _TOKEN_BYTES,
        )
        tokens = parts.record_token_parts(key, record)
        values = [(part.key, payload[part.start : part.stop]) for part in tokens]
        await self._blobs.put(values, self._staging_ttl_s)
        entry = Entry(manifest.engine_id, manifest.ordinal, manifest.started_at)
        blobs = [(part.key, part.nbytes) for part in parts.record_parts(key, record)]
        request = SealRequest(key, record, content, entry, chunks, blobs)
        outcome = await self._index.seal(request)
        if outcome == "sealed" or outcome == "replayed":
            return FrameResult(status=outcome)
        raise _refusal(outcome, "seal", key)

    async def _drop(self, drop: Drop) -> FrameResult:
        key = self._key(drop.request_id, drop.trajectory_id, drop.choice)
        started_at = drop.started_at or time.time()
        entry = Entry(drop.engine_id, drop.ordinal, started_at, drop.reason, drop.rows)
        pointer = Pointer(key.tag, key.request_id)
        for item_id in (key.request_id, *drop.aliases):
            await self._index.claim(keys.name_of(self._namespace, item_id), pointer)
        await self._index.drop(key, normalize_id(drop.upload_id), entry)
        return FrameResult(status="noted")

    def _key(self, request_id: str, trajectory_id: str | None, choice: int) -> RecordKey:
        tag = keys.tag_of(self._namespace, request_id, trajectory_id)
        return RecordKey(tag, request_id, choice)

    async def _claim(self, key: RecordKey, aliases: tuple[str, ...]) -> None:
        """Lead the request's names to its record before it is sealed, so that it is found at once.

        An id that leads to a sealed record of another trajectory is a conflict. An alias
        that does stays where it is: the record is found by its own id.
        """
        pointer = Pointer(key.tag, key.request_id)
        name = keys.name_of(self._namespace, key.request_id)
        if await self._index.claim(name, pointer) != pointer:
            raise _conflict(key)
        for alias in aliases:
            name = keys.name_of(self._namespace, alias)
            if await self._index.claim(name, pointer) != pointer:
                logger.warning("alias %s of %s leads to another record", alias, key.request_id)


def _content(manifest: RecordManifest) -> bytes:
    # Who recorded it and when is not part of what was recorded.
    return digest(
        _encode(msgspec.structs.replace(manifest, engine_id="", ordinal=0, started_at=0.0))
    )


def _match(manifest: RecordManifest, staged: dict[int, StagedChunk]) -> list[StagedChunk]:
    """Return the staged chunks of a manifest in order, or raise `UploadIncomplete`."""
    chunks: list[StagedChunk] = []
    first_row = 0
    for seq, ref in enumerate(manifest.chunks):
        chunk = staged.get(seq)
        if chunk is None:
            missing = [i for i in range(len(manifest.chunks)) if i not in staged]
            msg = (
                f"seal of {manifest.request_id}: {len(missing)} of {len(manifest.chunks)} chunks "
                f"are not staged, the first is {missing[0]}; send them before the seal"
            )
            raise UploadIncomplete(msg, missing=missing[:100])
        expected = (first_row, ref.rows, ref.nbytes, ref.digest, *_geometry(manifest))
        found = (chunk.first_row, chunk.rows, chunk.nbytes, chunk.digest, *_geometry(chunk))
        if found != expected:
            msg = (
                f"seal of {manifest.request_id}: chunk {seq} is staged with other content "
                f"(first row, rows, bytes, digest, layers, topk, experts, dtype): "
                f"found {found}, the manifest says {expected}"
            )
            raise UploadIncomplete(msg, seq=seq)
        chunks.append(chunk)
        first_row += ref.rows
    return chunks


def _geometry(shape: RecordManifest | StagedChunk) -> tuple[int, int, int, str]:
    return shape.num_layers, shape.topk, shape.num_experts, shape.dtype


def _refused(error: RouteReplayError) -> FrameResult:
    return FrameResult(status="refused", code=error.code, message=error.message)


def _conflict(key: RecordKey) -> RecordConflict:
    msg = (
        f"seal ({key.request_id}, choice {key.choice}): other content is sealed under this "
        "key; what is stored stays"
    )
    return RecordConflict(msg, request_id=key.request_id, choice=key.choice)


def _refusal(outcome: str, what: str, key: RecordKey) -> RouteReplayError:
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
