"""Reads rows and token ids of sealed records; nothing leaves here unverified.

Shape legend: T tokens, L layers, K topk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from routereplay.sidecar.store import parts
from routereplay.sidecar.store.base import Blobs, RecordKey, StoredRecord
from routereplay.sidecar.store.parts import Part
from routereplay.wire.digest import Buffer, digest
from routereplay.wire.errors import BadRequest, CorruptRecord, RoutesExpired
from routereplay.wire.records import RecordManifest
from routereplay.wire.routes import numpy_dtype

_WINDOW_BYTES = 4 * 1024 * 1024

Range: TypeAlias = tuple[int, int | None]
"""Half-open; None is the end of what there is."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows `[token_start, token_stop)` of layers `[layer_start, layer_stop)` of a record."""

    key: RecordKey
    record: StoredRecord
    token_start: int
    token_stop: int
    layer_start: int
    layer_stop: int

    @property
    def manifest(self) -> RecordManifest:
        """The record's manifest."""
        return self.record.manifest

    @property
    def rows(self) -> int:
        """Rows of the slice."""
        return self.token_stop - self.token_start

    @property
    def nbytes(self) -> int:
        """Bytes of the slice."""
        layers = self.layer_stop - self.layer_start
        return self.rows * (self.manifest.row_nbytes // self.manifest.num_layers) * layers


def cut(key: RecordKey, record: StoredRecord, tokens: Range | None, layers: Range | None) -> Slice:
    """Return the part of a record that was asked for.

    Tokens are cut to those that have a row, as a token without one is a normal thing;
    layers that the model does not have are an error of the caller.
    """
    manifest = record.manifest
    row_stop = manifest.row_start + manifest.rows
    start, stop = tokens or (0, None)
    start = min(max(start, manifest.row_start), row_stop)
    stop = row_stop if stop is None else max(min(stop, row_stop), start)
    first, last = layers or (0, None)
    last = manifest.num_layers if last is None else last
    if not 0 <= first < last <= manifest.num_layers:
        msg = f"layers {first}:{last} of {key.request_id}: the model has 0:{manifest.num_layers}"
        raise BadRequest(msg)
    return Slice(key, record, start, stop, first, last)


async def read_tokens(blobs: Blobs, key: RecordKey, record: StoredRecord) -> bytes:
    """Return the int32 token ids of prompt and completion."""
    pieces = parts.record_token_parts(key, record)
    values = _present(key, await blobs.get([piece.key for piece in pieces]))
    tokens = b"".join(values)
    if digest(tokens) != record.manifest.token_digest:
        raise _corrupt(key, "the token ids")
    return tokens


async def read_rows(blobs: Blobs, part: Slice) -> AsyncIterator[Buffer]:
    """Yield the bytes of a slice, C order, reading only chunks that hold a row of it.

    Raises:
        CorruptRecord: a chunk is not what was sealed.
        RoutesExpired: the record went away while it was read.
    """
    for window in _windows(part):
        names = [piece.key for _, _, pieces in window for piece in pieces]
        values = iter(_present(part.key, await blobs.get(names)))
        work = [(seq, start, [next(values) for _ in pieces]) for seq, start, pieces in window]
        for buffer in await asyncio.to_thread(_verify_and_cut, part, work):
            yield buffer


def _windows(part: Slice) -> list[list[tuple[int, int, list[Part]]]]:
    """Group the chunks of a slice, as (seq, token index of the first row, values)."""
    windows: list[list[tuple[int, int, list[Part]]]] = []
    if part.rows == 0:
        return windows
    room = 0
    start = part.manifest.row_start
    for seq, chunk in enumerate(part.manifest.chunks):
        if start < part.token_stop and start + chunk.rows > part.token_start:
            if room < chunk.nbytes or not windows:
                windows.append([])
                room = _WINDOW_BYTES
            room -= chunk.nbytes
            pieces = parts.record_chunk_parts(part.key, part.record, seq)
            windows[-1].append((seq, start, pieces))
        start += chunk.rows
    return windows


def _verify_and_cut(part: Slice, work: list[tuple[int, int, list[bytes]]]) -> list[Buffer]:
    manifest = part.manifest
    buffers: list[Buffer] = []
    for seq, start, values in work:
        chunk = manifest.chunks[seq]
        if digest(*values) != chunk.digest:
            raise _corrupt(part.key, f"chunk {seq}")
        first = max(part.token_start - start, 0)
        last = min(part.token_stop - start, chunk.rows)
        whole_layers = part.layer_stop - part.layer_start == manifest.num_layers
        if whole_layers and (first, last) == (0, chunk.rows):
            buffers.extend(values)
            continue
        joined = values[0] if len(values) == 1 else b"".join(values)
        rows_TLK = np.frombuffer(joined, numpy_dtype(manifest.dtype)).reshape(
            chunk.rows, manifest.num_layers, manifest.topk
        )
        asked = rows_TLK[first:last, part.layer_start : part.layer_stop]
        buffers.append(np.ascontiguousarray(asked).data.cast("B"))
    return buffers


def _present(key: RecordKey, values: Sequence[bytes | None]) -> list[bytes]:
    present = [value for value in values if value is not None]
    if len(present) != len(values):
        msg = f"request {key.request_id}, choice {key.choice}: it expired while it was read"
        raise RoutesExpired(msg, request_id=key.request_id, choice=key.choice)
    return present


def _corrupt(key: RecordKey, what: str) -> CorruptRecord:
    msg = (
        f"request {key.request_id}, choice {key.choice}: {what} in the engine is not what was "
        "sealed; nothing of it is served. Check the engine's memory and disk."
    )
    return CorruptRecord(msg, request_id=key.request_id, choice=key.choice)
