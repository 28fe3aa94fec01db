"""Seals: a manifest that adds up publishes what is staged, in one step."""

from __future__ import annotations

import logging
from typing import cast

import msgspec

from routereplay.sidecar.ancestry import Ancestry
from routereplay.sidecar.refusals import conflict, refusal
from routereplay.sidecar.staging import Arrived, Arriving, Values
from routereplay.sidecar.store import keys, parts
from routereplay.sidecar.store.base import (
    Blobs,
    Entry,
    Index,
    RecordKey,
    SealRequest,
    StagedChunk,
    StoredRecord,
)
from routereplay.wire.digest import digest
from routereplay.wire.errors import UploadIncomplete
from routereplay.wire.ids import normalize_id
from routereplay.wire.records import FrameResult, RecordManifest, Seal

logger = logging.getLogger(__name__)

_TOKEN_BYTES = 4
_encode = msgspec.msgpack.Encoder().encode


class Sealer:
    """Seals uploads of one namespace."""

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
        self._token_part_bytes = value_bytes // _TOKEN_BYTES * _TOKEN_BYTES
        self._staging_ttl_s = staging_ttl_s

    def tokens(self, one: Arriving, arrived: Arrived) -> Values:
        """Return the token ids of an upload if all its chunks `arrived` with the same body."""
        key, seal, payload = self._found(one)
        manifest, upload_id = seal.manifest, normalize_id(seal.upload_id)
        staged = arrived.chunks.get((key.tag, upload_id), {})
        if not staged or not _has_all(staged, manifest):
            return []
        values = self._token_values(key, manifest, upload_id, payload)
        arrived.tokens.update(name for name, _ in values)
        return values

    async def seal(self, one: Arriving, arrived: Arrived) -> FrameResult:
        """Seal an upload, or raise why it cannot be.

        What `arrived` with the same body need not be asked for: the index compares it in the
        step that seals.
        """
        key, seal, payload = self._found(one)
        manifest, upload_id = seal.manifest, normalize_id(seal.upload_id)
        content = _content(manifest)
        staged = arrived.chunks.get((key.tag, upload_id), {})
        if not staged or not _has_all(staged, manifest):
            sealed, staged = await self._index.so_far(key, upload_id)
            if sealed == content:
                return FrameResult(status="replayed")
            if sealed is not None:
                raise conflict(key)
        chunks = _match(manifest, staged)
        if not seal.orphan:
            await self._ancestry.check(key, manifest)
        await self._claim(key, manifest.aliases, arrived)
        record = StoredRecord(
            manifest,
            upload_id,
            tuple(chunk.layout for chunk in chunks),
            self._token_part_bytes,
        )
        values = self._token_values(key, manifest, upload_id, payload)
        if missing := [value for value in values if value[0] not in arrived.tokens]:
            await self._blobs.put(missing, self._staging_ttl_s)
        entry = Entry(manifest.engine_id, manifest.ordinal, manifest.started_at)
        blobs = [(part.key, part.nbytes) for part in parts.record_parts(key, record)]
        request = SealRequest(key, record, content, entry, chunks, blobs)
        outcome = await self._index.seal(request)
        if outcome == "sealed" or outcome == "replayed":
            return FrameResult(status=outcome)
        raise refusal(outcome, "seal", key)

    def _found(self, one: Arriving) -> tuple[RecordKey, Seal, memoryview]:
        seal = cast("Seal", one.frame.header)
        return keys.record_key(self._namespace, seal.manifest), seal, one.frame.payload

    def _token_values(
        self, key: RecordKey, manifest: RecordManifest, upload_id: str, payload: memoryview
    ) -> Values:
        split = manifest.token_digest, payload.nbytes, self._token_part_bytes
        return [
            (part.key, payload[part.start : part.stop])
            for part in parts.token_parts(key.tag, upload_id, *split)
        ]

    async def _claim(self, key: RecordKey, aliases: tuple[str, ...], arrived: Arrived) -> None:
        """Lead the request's names to its record before it is sealed, so that it is found at once.

        An id that leads to a sealed record of another trajectory is a conflict. An alias
        that does stays where it is: the record is found by its own id.
        """
        wanted = keys.leads_to(self._namespace, key, aliases)
        asked = [lead for lead in wanted if arrived.leads.get(lead) != lead.pointer]
        if asked:
            arrived.leads.update(zip(asked, await self._index.claim(asked), strict=True))
        for lead in wanted:
            if arrived.leads[lead] == lead.pointer:
                continue
            if lead == wanted[0]:
                raise conflict(key)
            logger.warning("alias %s of %s leads to another record", lead.name, key.request_id)


def _content(manifest: RecordManifest) -> bytes:
    # Who recorded it and when is not part of what was recorded.
    return digest(
        _encode(msgspec.structs.replace(manifest, engine_id="", ordinal=0, started_at=0.0))
    )


def _has_all(staged: dict[int, StagedChunk], manifest: RecordManifest) -> bool:
    return all(seq in staged for seq in range(len(manifest.chunks)))


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
