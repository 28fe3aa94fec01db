"""Deltas: records whose rows before the first are those of another record.

The parent is named by the recorder and believed by nobody: it must be of the same
trajectory or request, of the same recording, of the same model's shape, reach far
enough, and have the same token ids up to where the delta begins.
"""

from __future__ import annotations

from routereplay.sidecar.lookup import state_error
from routereplay.sidecar.reading import read_tokens
from routereplay.sidecar.slices import Range, Slice, cut
from routereplay.sidecar.store.base import (
    Blobs,
    Index,
    Pointer,
    RecordKey,
    RecordStatus,
    StoredRecord,
)
from routereplay.wire.digest import digest
from routereplay.wire.errors import ParentLost, ParentMismatch, RouteReplayError
from routereplay.wire.ids import normalize_id
from routereplay.wire.records import ParentRef, RecordManifest

_TOKEN_BYTES = 4


class Ancestry:
    """Follows deltas to the records that their first rows are in."""

    def __init__(self, blobs: Blobs, index: Index) -> None:
        self._blobs = blobs
        self._index = index

    async def check(self, key: RecordKey, manifest: RecordManifest) -> None:
        """Refuse the seal of a delta whose parent cannot be right; one on its way passes.

        Raises:
            ParentMismatch: the parent is another recording, shape or token sequence.
            ParentLost: it was never seen here, or is gone.
        """
        ref = manifest.parent
        if ref is None:
            return
        status = await self._find(key, ref)
        what = _rows_of(key, manifest)
        if status is None:
            msg = f"{what} {_named(ref)}, which this store never saw"
            raise ParentLost(msg, request_id=key.request_id, choice=key.choice)
        if status.state not in ("sealed", "pending"):
            msg = f"{what} {_named(ref)}. {state_error(status).message}"
            raise ParentLost(msg, request_id=key.request_id, choice=key.choice)
        await self._match(key, manifest, ref, status)

    async def slices(
        self, status: RecordStatus, tokens: Range | None, layers: Range | None
    ) -> list[Slice]:
        """Return where the rows that were asked for are: one record, or it and its ancestors.

        Raises:
            RoutesPending, RoutesExpired, RoutesDeleted, RoutesDropped, ParentLost: the state
                of an ancestor whose rows are needed.
            ParentMismatch: an ancestor is not what the delta was recorded on.
        """
        key, record = status.key, _sealed(status)
        pieces = [cut(key, record, tokens, layers)]
        start, stop = tokens or (0, None)
        seen: set[RecordKey] = set()
        while key not in seen:
            seen.add(key)
            manifest = record.manifest
            stop = manifest.row_start if stop is None else min(stop, manifest.row_start)
            if manifest.parent is None or start >= stop:
                return [piece for piece in pieces if piece.rows] or pieces[-1:]
            parent = await self._parent(key, manifest, manifest.parent)
            key, record = parent.key, _sealed(parent)
            pieces.insert(0, cut(key, record, (start, stop), layers))
        msg = (
            f"request {status.key.request_id}, choice {status.key.choice}: its ancestors are a ring"
        )
        raise ParentMismatch(msg, request_id=status.key.request_id, choice=status.key.choice)

    async def _parent(
        self, key: RecordKey, manifest: RecordManifest, ref: ParentRef
    ) -> RecordStatus:
        """Return the sealed parent of a delta, checked, or raise what became of it."""
        status = await self._find(key, ref)
        what = _rows_of(key, manifest)
        rest = f"tokens={manifest.row_start}: asks for the delta alone"
        if status is None:
            msg = f"{what} {_named(ref)}, which this store never saw. {rest}"
            raise ParentLost(msg, request_id=key.request_id, choice=key.choice)
        if status.state != "sealed":
            error = state_error(status)
            msg = f"{what} {_named(ref)}. {error.message}. {rest}"
            raise type(error)(msg, **error.details)
        await self._match(key, manifest, ref, status)
        return status

    async def _find(self, key: RecordKey, ref: ParentRef) -> RecordStatus | None:
        found = await self._index.request(Pointer(key.tag, ref.request_id))
        return next((one for one in found if one.key.choice == ref.choice), None)

    async def _match(
        self, key: RecordKey, manifest: RecordManifest, ref: ParentRef, status: RecordStatus
    ) -> None:
        fault = await self._fault(manifest, ref, status)
        if fault:
            msg = f"{_rows_of(key, manifest)} {_named(ref)}, which {fault}"
            raise ParentMismatch(msg, request_id=key.request_id, choice=key.choice)

    async def _fault(self, manifest: RecordManifest, ref: ParentRef, status: RecordStatus) -> str:
        """Return why the rows of the record cannot be those before a delta, or nothing."""
        if status.upload_id != normalize_id(ref.upload_id):
            return "was recorded anew since"
        if status.record is None:
            return ""
        parent = status.record.manifest
        if _shape(parent) != _shape(manifest):
            return f"is of another model or shape: {_shape(parent)}, not {_shape(manifest)}"
        reach = parent.row_start + parent.rows
        if reach < manifest.row_start:
            return f"has rows up to {reach} only"
        (tokens,) = await read_tokens(self._blobs, [(status.key, status.record)])
        if isinstance(tokens, RouteReplayError):
            raise tokens
        prefix = tokens[: _TOKEN_BYTES * manifest.row_start]
        return "" if digest(prefix) == ref.prefix_digest else "has other token ids there"


def _sealed(status: RecordStatus) -> StoredRecord:
    if status.record is None:
        msg = f"{status.key} is {status.state} and was passed on as sealed"
        raise ValueError(msg)
    return status.record


def _shape(manifest: RecordManifest) -> tuple[str, int, int, int, str]:
    return (
        manifest.model,
        manifest.num_layers,
        manifest.topk,
        manifest.num_experts,
        manifest.dtype,
    )


def _rows_of(key: RecordKey, manifest: RecordManifest) -> str:
    rows = f"rows 0:{manifest.row_start}"
    return f"request {key.request_id}, choice {key.choice}: its {rows} are those of"


def _named(ref: ParentRef) -> str:
    return f"request {ref.request_id}, choice {ref.choice}"
