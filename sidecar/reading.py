"""Reads rows and token ids of sealed records; nothing leaves here unverified.

Shape legend: T tokens, L layers, C bytes of a cell (the experts of one layer of one token).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from routereplay.sidecar.room import Scratch
from routereplay.sidecar.store import bands, parts
from routereplay.sidecar.store.bands import Shape
from routereplay.sidecar.store.base import Blobs, RecordKey, StoredRecord, Wanted
from routereplay.sidecar.store.windows import WINDOW_BYTES, windows
from routereplay.wire.digest import digest
from routereplay.wire.errors import BadRequest, CorruptRecord, RouteReplayError, RoutesExpired
from routereplay.wire.records import RecordManifest

_AT_ONCE = 8
"""Windows that are read at one time: more would not come sooner, and each takes memory."""

_scratch = Scratch(_AT_ONCE // 2, 2 * WINDOW_BYTES)
_turn = asyncio.Semaphore(_AT_ONCE)

INLINE_BYTES = 256 * 1024
"""Hashing more than this on the event loop would make every other client wait."""

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
    def layers(self) -> int:
        """Layers of the slice."""
        return self.layer_stop - self.layer_start

    @property
    def nbytes(self) -> int:
        """Bytes of the slice."""
        return self.rows * (self.manifest.row_nbytes // self.manifest.num_layers) * self.layers


class Piece(NamedTuple):
    """What a slice takes of one chunk, and the memory to put it in, once there is some."""

    part: Slice
    seq: int
    rows: range
    """Rows within the chunk."""
    into: memoryview = memoryview(b"")
    """`[rows, layers of the slice, cell]`."""

    @property
    def nbytes(self) -> int:
        """Bytes of its place."""
        return len(self.rows) * (self.part.nbytes // self.part.rows)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the chunk."""
        return self.has_all_layers and len(self.rows) == self.part.manifest.chunks[self.seq].rows

    @property
    def has_all_layers(self) -> bool:
        """Whether it is all layers of its rows."""
        return self.part.layers == self.part.manifest.num_layers


class _Value(NamedTuple):
    """One value of a chunk, or the bands of it that are read."""

    shape: Shape
    first_row: int
    """Within the chunk."""
    number: int
    wanted: Wanted


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


async def read_tokens(
    blobs: Blobs, records: Sequence[tuple[RecordKey, StoredRecord]]
) -> list[memoryview]:
    """Return the int32 token ids of prompt and completion of each record."""
    found = [memoryview(bytearray(4 * record.manifest.num_tokens)) for _, record in records]
    wanted, owners = [], []
    for (key, record), tokens in zip(records, found, strict=True):
        for part in parts.record_token_parts(key, record):
            wanted.append(Wanted(part.key, tokens[part.start : part.stop]))
            owners.append(key)
    for key, want, length in zip(owners, wanted, await blobs.read(wanted), strict=True):
        _check_length(key, want, length, "the token ids")
    for (key, record), tokens in zip(records, found, strict=True):
        if digest(tokens) != record.manifest.token_digest:
            raise _corrupt(key, "the token ids")
    return [tokens.toreadonly() for tokens in found]


def pieces(part: Slice) -> Iterator[Piece]:
    """Yield the chunks that hold a row of a slice, in order."""
    start = part.manifest.row_start
    for seq, chunk in enumerate(part.manifest.chunks):
        rows = range(max(part.token_start - start, 0), min(part.token_stop - start, chunk.rows))
        if rows:
            yield Piece(part, seq, rows)
        start += chunk.rows


def placed(wanted: Iterable[Piece], into: memoryview) -> list[Piece]:
    """Return pieces with places in `into`, one behind the other."""
    found, at = [], 0
    for piece in wanted:
        found.append(piece._replace(into=into[at : at + piece.nbytes]))
        at += piece.nbytes
    return found


async def read_rows(blobs: Blobs, wanted: Sequence[Piece]) -> dict[int, RouteReplayError]:
    """Fill pieces, and return what is wrong with those that could not be: error by position.

    CorruptRecord: a chunk is not what was sealed. RoutesExpired: it went away meanwhile.
    """
    errors: dict[int, RouteReplayError] = {}
    for window in windows(list(enumerate(wanted)), lambda one: _moved_nbytes(one[1])):
        nbytes = sum(_moved_nbytes(piece) for _, piece in window)
        async with _turn:
            with _scratch.lent(nbytes) as scratch:
                errors |= await _read_window(blobs, window, scratch)
    return errors


async def _read_window(
    blobs: Blobs, window: list[tuple[int, Piece]], scratch: memoryview
) -> dict[int, RouteReplayError]:
    errors: dict[int, RouteReplayError] = {}
    work: list[tuple[int, Piece, list[_Value]]] = []
    for number, piece in window:
        nbytes = _moved_nbytes(piece)
        work.append((number, piece, list(_values(piece, scratch[:nbytes]))))
        scratch = scratch[nbytes:]
    lengths = iter(await blobs.read([value.wanted for *_, values in work for value in values]))
    present = []
    for number, piece, values in work:
        found = [next(lengths) for _ in values]
        try:
            for value, length in zip(values, found, strict=True):
                _check_length(piece.part.key, value.wanted, length, f"chunk {piece.seq}")
        except RouteReplayError as error:
            errors[number] = error
        else:
            present.append((number, piece, values))
    if sum(len(piece.into) for _, piece, _ in present) > INLINE_BYTES:
        errors |= await asyncio.to_thread(_place, present)
    else:
        errors |= _place(present)
    return errors


def _values(piece: Piece, scratch: memoryview) -> Iterator[_Value]:
    """Yield the values of a chunk, or their bands, that are read into `scratch`."""
    part, record = piece.part, piece.part.record
    layout = record.layouts[piece.seq]
    cell = part.manifest.row_nbytes // part.manifest.num_layers
    row = 0
    for number, stored in enumerate(parts.record_chunk_parts(part.key, record, piece.seq)):
        shape = Shape(
            stored.nbytes // part.manifest.row_nbytes, part.manifest.num_layers, cell, layout.bands
        )
        if _reads_bands(piece):
            found = list(bands.bands(shape, part.layer_start, part.layer_stop))
            last = found[-1]
            start = found[0].offset
            nbytes = last.offset + shape.rows * (last.stop - last.start) * cell - start
            # Rows that nobody asked for in a value of its own are not read.
            if row < piece.rows.stop and row + shape.rows > piece.rows.start:
                yield _Value(shape, row, number, Wanted(stored.key, scratch[:nbytes], start))
                scratch = scratch[nbytes:]
        else:
            yield _Value(shape, row, number, Wanted(stored.key, scratch[: stored.nbytes]))
            scratch = scratch[stored.nbytes :]
        row += shape.rows


def _reads_bands(piece: Piece) -> bool:
    return not piece.has_all_layers and piece.part.record.layouts[piece.seq].bands > 1


def _moved_nbytes(piece: Piece) -> int:
    """Return at least the bytes that are read for a piece, and exactly those of a whole chunk."""
    return piece.part.manifest.chunks[piece.seq].nbytes


def _place(work: list[tuple[int, Piece, list[_Value]]]) -> dict[int, RouteReplayError]:
    """Verify what was read and put it in its place; return the errors by position."""
    errors: dict[int, RouteReplayError] = {}
    for number, piece, values in work:
        place = _place_bands if _reads_bands(piece) else _place_chunk
        if not place(piece, values):
            errors[number] = _corrupt(piece.part.key, f"chunk {piece.seq}")
    return errors


def _place_chunk(piece: Piece, values: list[_Value]) -> bool:
    part, chunk = piece.part, piece.part.manifest.chunks[piece.seq]
    whole = piece.into if piece.is_whole else np.empty(chunk.nbytes, np.uint8).data
    for value in values:
        at = value.first_row * part.manifest.row_nbytes
        bands.join(value.wanted.into, value.shape, whole[at : at + value.shape.nbytes])
    if digest(whole) != chunk.digest:
        return False
    if not piece.is_whole:
        rows_TLC = np.frombuffer(whole, np.uint8).reshape(chunk.rows, part.manifest.num_layers, -1)
        out_TLC = np.frombuffer(piece.into, np.uint8).reshape(len(piece.rows), part.layers, -1)
        out_TLC[...] = rows_TLC[
            piece.rows.start : piece.rows.stop, part.layer_start : part.layer_stop
        ]
    return True


def _place_bands(piece: Piece, values: list[_Value]) -> bool:
    part = piece.part
    layout = part.record.layouts[piece.seq]
    layers = range(part.layer_start, part.layer_stop)
    out_TLC = np.frombuffer(piece.into, np.uint8).reshape(len(piece.rows), part.layers, -1)
    for shape, first_row, number, wanted in values:
        rows = range(
            max(piece.rows.start - first_row, 0), min(piece.rows.stop - first_row, shape.rows)
        )
        at = first_row + rows.start - piece.rows.start
        found = list(bands.bands(shape, part.layer_start, part.layer_stop))
        for band in found:
            offset = band.offset - found[0].offset
            nbytes = shape.rows * (band.stop - band.start) * shape.cell
            held = wanted.into[offset : offset + nbytes]
            if not bands.is_intact(held, layout, shape, number, band):
                return False
            bands.take(held, band, shape, rows, layers, out_TLC[at : at + len(rows)])
    return True


def _check_length(key: RecordKey, want: Wanted, length: int | None, what: str) -> None:
    if length is None:
        msg = f"request {key.request_id}, choice {key.choice}: it expired while it was read"
        raise RoutesExpired(msg, request_id=key.request_id, choice=key.choice)
    if length != len(want.into):
        raise _corrupt(key, what)


def _corrupt(key: RecordKey, what: str) -> CorruptRecord:
    msg = (
        f"request {key.request_id}, choice {key.choice}: {what} in the engine is not what was "
        "sealed; nothing of it is served. Check the engine's memory and disk."
    )
    return CorruptRecord(msg, request_id=key.request_id, choice=key.choice)
