"""Reads rows and token ids of sealed records; nothing leaves here unverified.

Shape legend: T tokens, L layers, C bytes of a cell (the experts of one layer of one token).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from routereplay.sidecar.room import shared_scratch
from routereplay.sidecar.slices import Piece
from routereplay.sidecar.store import bands, parts
from routereplay.sidecar.store.bands import Shape
from routereplay.sidecar.store.base import Blobs, RecordKey, StoredRecord, Wanted
from routereplay.sidecar.store.windows import windows
from routereplay.wire.digest import digest
from routereplay.wire.errors import CorruptRecord, RouteReplayError, RoutesExpired
from routereplay.wire.frame import aligned

_AT_ONCE = 8
"""Windows that are read at one time: more would not come sooner, and each takes memory."""

_turn = asyncio.Semaphore(_AT_ONCE)

INLINE_BYTES = 256 * 1024
"""Hashing more than this on the event loop would make every other client wait."""

TokenIds: TypeAlias = memoryview | RouteReplayError
"""int32 token ids of prompt and completion with zeros up to a multiple of 64 bytes, or what is
wrong with them."""


class Tokens(NamedTuple):
    """The token ids of a record, and the memory to receive them into."""

    key: RecordKey
    record: StoredRecord
    into: memoryview
    owner: int = 0
    """Of the item that they are of."""


class _Value(NamedTuple):
    """One value of a chunk, or the bands of it that are read."""

    shape: Shape
    first_row: int
    """Within the chunk."""
    number: int
    wanted: Wanted


_Work: TypeAlias = tuple[Piece, list[_Value]]


async def read_tokens(
    blobs: Blobs, records: Sequence[tuple[RecordKey, StoredRecord]]
) -> list[TokenIds]:
    """Return the token ids of each record, or its error."""
    sizes = [4 * record.manifest.num_tokens for _, record in records]
    memory = np.zeros(sum(map(aligned, sizes)), np.uint8).data
    wanted, found, at = [], list[TokenIds](), 0
    for number, ((key, record), nbytes) in enumerate(zip(records, sizes, strict=True)):
        wanted.append(Tokens(key, record, memory[at : at + nbytes], number))
        found.append(memory[at : at + aligned(nbytes)].toreadonly())
        at += aligned(nbytes)
    for number, error in (await read_rows(blobs, (), wanted)).items():
        found[number] = error
    return found


async def read_rows(
    blobs: Blobs, wanted: Sequence[Piece], tokens: Sequence[Tokens] = ()
) -> dict[int, RouteReplayError]:
    """Fill pieces and token ids, and return what is wrong with those that could not be: by owner.

    CorruptRecord: a chunk is not what was sealed. RoutesExpired: it went away meanwhile.
    """
    errors: dict[int, RouteReplayError] = {}
    for window in windows(wanted, _moved_nbytes) if wanted else iter([[]]):
        async with _turn:
            with shared_scratch.lent(sum(map(_moved_nbytes, window))) as scratch:
                errors |= await _read_window(blobs, window, tokens, scratch)
        # They came with the first window.
        tokens = ()
    return errors


async def _read_window(
    blobs: Blobs, window: Sequence[Piece], tokens: Sequence[Tokens], scratch: memoryview
) -> dict[int, RouteReplayError]:
    errors: dict[int, RouteReplayError] = {}
    work: list[_Work] = []
    for piece in window:
        nbytes = _moved_nbytes(piece)
        work.append((piece, list(_values(piece, scratch[:nbytes]))))
        scratch = scratch[nbytes:]
    asked = [list(_token_values(one)) for one in tokens]
    wanted = [want for wants in asked for want in wants]
    wanted += [value.wanted for _, values in work for value in values]
    lengths = iter(await blobs.read(wanted))
    arrived = []
    for one, wants in zip(tokens, asked, strict=True):
        error = _fault(one.key, wants, lengths, "the token ids")
        if error is None:
            arrived.append(one)
        else:
            errors[one.owner] = error
    present = []
    for piece, values in work:
        wants = [value.wanted for value in values]
        error = _fault(piece.part.key, wants, lengths, "chunk %d", piece.seq)
        if error is None:
            present.append((piece, values))
        else:
            errors[piece.owner] = error
    if sum(len(want.into) for want in wanted) > INLINE_BYTES:
        return errors | await asyncio.to_thread(_verify, arrived, present)
    return errors | _verify(arrived, present)


def _token_values(tokens: Tokens) -> Iterator[Wanted]:
    for part in parts.record_token_parts(tokens.key, tokens.record):
        yield Wanted(part.key, tokens.into[part.start : part.stop])


def _values(piece: Piece, scratch: memoryview) -> Iterator[_Value]:
    """Yield the values of a chunk, or their bands, and where they are received.

    In `scratch`, or in their place where they are nothing but the rows that are wanted.
    """
    part, seq = piece.part, piece.seq
    layout, num_layers = part.record.layouts[seq], part.manifest.num_layers
    row_nbytes = num_layers * part.cell
    if piece.is_whole and layout.bands == 1:
        scratch = piece.into
    row = 0
    for number, stored in enumerate(parts.record_chunk_parts(part.key, part.record, seq)):
        nbytes = stored.stop - stored.start
        shape = Shape(nbytes // row_nbytes, num_layers, part.cell, layout.bands)
        if _reads_bands(piece):
            found = list(bands.bands(shape, part.layer_start, part.layer_stop))
            last = found[-1]
            start = found[0].offset
            nbytes = last.offset + shape.rows * (last.stop - last.start) * part.cell - start
            # Rows that nobody asked for in a value of its own are not read.
            if row < piece.stop and row + shape.rows > piece.start:
                yield _Value(shape, row, number, Wanted(stored.key, scratch[:nbytes], start))
                scratch = scratch[nbytes:]
        else:
            yield _Value(shape, row, number, Wanted(stored.key, scratch[:nbytes]))
            scratch = scratch[nbytes:]
        row += shape.rows


def _reads_bands(piece: Piece) -> bool:
    return not piece.has_all_layers and piece.part.record.layouts[piece.seq].bands > 1


def _moved_nbytes(piece: Piece) -> int:
    """Return at least the bytes that are read for a piece, and exactly those of a whole chunk."""
    return piece.part.manifest.chunks[piece.seq].nbytes


def _verify(tokens: Sequence[Tokens], work: Sequence[_Work]) -> dict[int, RouteReplayError]:
    """Verify what was read and put it in its place; return the errors by owner."""
    errors: dict[int, RouteReplayError] = {}
    for one in tokens:
        if digest(one.into) != one.record.manifest.token_digest:
            errors[one.owner] = _corrupt(one.key, "the token ids")
    for piece, values in work:
        place = _place_bands if _reads_bands(piece) else _place_chunk
        if not place(piece, values):
            errors[piece.owner] = _corrupt(piece.part.key, f"chunk {piece.seq}")
    return errors


def _place_chunk(piece: Piece, values: list[_Value]) -> bool:
    part, chunk = piece.part, piece.part.manifest.chunks[piece.seq]
    layout, row_nbytes = part.record.layouts[piece.seq], part.manifest.row_nbytes
    whole = piece.into if piece.is_whole else np.empty(chunk.nbytes, np.uint8).data
    for shape, first_row, number, wanted in values:
        if layout.has_quick_sums and not bands.are_intact(wanted.into, layout, shape, number):
            return False
        if layout.bands > 1 or not piece.is_whole:
            at = first_row * row_nbytes
            bands.join(wanted.into, shape, whole[at : at + shape.nbytes])
    if not layout.has_quick_sums and digest(whole) != chunk.digest:
        return False
    if not piece.is_whole:
        rows_TLC = np.frombuffer(whole, np.uint8).reshape(chunk.rows, part.manifest.num_layers, -1)
        out_TLC = np.frombuffer(piece.into, np.uint8).reshape(piece.rows, part.layers, -1)
        out_TLC[...] = rows_TLC[piece.start : piece.stop, part.layer_start : part.layer_stop]
    return True


def _place_bands(piece: Piece, values: list[_Value]) -> bool:
    part = piece.part
    layout = part.record.layouts[piece.seq]
    layers = range(part.layer_start, part.layer_stop)
    out_TLC = np.frombuffer(piece.into, np.uint8).reshape(piece.rows, part.layers, -1)
    for shape, first_row, number, wanted in values:
        rows = range(max(piece.start - first_row, 0), min(piece.stop - first_row, shape.rows))
        at = first_row + rows.start - piece.start
        found = list(bands.bands(shape, part.layer_start, part.layer_stop))
        for band in found:
            offset = band.offset - found[0].offset
            nbytes = shape.rows * (band.stop - band.start) * shape.cell
            held = wanted.into[offset : offset + nbytes]
            if not bands.is_intact(held, layout, shape, number, band):
                return False
            bands.take(held, band, shape, rows, layers, out_TLC[at : at + len(rows)])
    return True


def _fault(
    key: RecordKey, wants: Sequence[Wanted], lengths: Iterator[int | None], what: str, *words: int
) -> RouteReplayError | None:
    """Return why values did not arrive, or None; takes the length of each of them, and no more."""
    error: RouteReplayError | None = None
    for want, length in zip(wants, lengths, strict=False):
        if length != len(want.into) and error is None:
            error = _expired(key) if length is None else _corrupt(key, what % words)
    return error


def _expired(key: RecordKey) -> RoutesExpired:
    msg = f"request {key.request_id}, choice {key.choice}: it expired while it was read"
    return RoutesExpired(msg, request_id=key.request_id, choice=key.choice)


def _corrupt(key: RecordKey, what: str) -> CorruptRecord:
    msg = (
        f"request {key.request_id}, choice {key.choice}: {what} in the engine is not what was "
        "sealed; nothing of it is served. Check the engine's memory and disk."
    )
    return CorruptRecord(msg, request_id=key.request_id, choice=key.choice)
