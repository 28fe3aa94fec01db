"""How a value is laid out, so that a range of layers is a range of its bytes.

Rows come and go as `[tokens, layers, cell]`: a token's layers are neighbours, and what one
pipeline stage owns is scattered over every row. In the engine a value is a sequence of
bands, each `[tokens, layers of the band, cell]`: a stage reads the bands that hold its
layers and nothing else. Each band has a digest of its own, as a part of a value cannot be
checked against a digest of all of it. It guards against damage between here and the reader, and
nothing else hangs on it, so it is XXH3: an eighth of the cost of BLAKE3, which stays the identity
of what was recorded.

Shape legend: T tokens, L layers, C bytes of a cell (the experts of one layer of one token).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_128_digest

from routereplay.sidecar.store.base import Layout
from routereplay.sidecar.store.parts import rows_per_value
from routereplay.wire.digest import DIGEST_BYTES, Buffer, digest
from routereplay.wire.records import Chunk

MOST_BANDS = 8
_BAND_BYTES = 16 * 1024
"""Smaller bands would cost more to ask for and to hash than they save."""


class Shape(NamedTuple):
    """A value of `rows` rows: its layers, the bytes of a cell, and its number of bands."""

    rows: int
    layers: int
    cell: int
    bands: int

    @property
    def nbytes(self) -> int:
        """Bytes of the value."""
        return self.rows * self.layers * self.cell


class Band(NamedTuple):
    """Layers `[start, stop)` of a value, and where their bytes begin."""

    number: int
    start: int
    stop: int
    offset: int


def band_count(nbytes: int, layers: int) -> int:
    """Return how many bands a value of `nbytes` should have."""
    return max(min(MOST_BANDS, layers, nbytes // _BAND_BYTES), 1)


def bands(shape: Shape, layer_start: int, layer_stop: int) -> Iterator[Band]:
    """Yield the bands that hold a layer of `[layer_start, layer_stop)`."""
    edges = [number * shape.layers // shape.bands for number in range(shape.bands + 1)]
    for number, (start, stop) in enumerate(pairwise(edges)):
        if start < layer_stop and stop > layer_start:
            yield Band(number, start, stop, start * shape.rows * shape.cell)


def split(rows: Buffer, shape: Shape, into: memoryview) -> bytes:
    """Write rows as a value, and return the digests of its bands one behind the other."""
    if shape.layers % shape.bands == 0:
        # All bands are as wide, and one copy moves them all.
        run = np.dtype(f"V{shape.layers // shape.bands * shape.cell}")
        rows_TB = np.frombuffer(rows, run).reshape(shape.rows, shape.bands)
        np.frombuffer(into, run).reshape(shape.bands, shape.rows)[...] = rows_TB.T
    else:
        rows_TLC = np.frombuffer(rows, np.uint8).reshape(shape[:3])
        value = np.frombuffer(into, np.uint8)
        for band in bands(shape, 0, shape.layers):
            _copy(rows_TLC[:, band.start : band.stop], _band_of(value, shape, band))
    return b"".join(xxh3_128_digest(into[start:stop]) for _, start, stop in _spans(shape))


def lay_out(
    chunk: Chunk, payload: memoryview, value_bytes: int, scratch: memoryview
) -> tuple[Layout, list[memoryview]]:
    """Return how a chunk is kept, and its values, each of at most `value_bytes`.

    The values are in `scratch`, or in the payload itself where there is but one band.
    """
    row_nbytes = payload.nbytes // chunk.rows
    part_rows = rows_per_value(row_nbytes, value_bytes)
    cell = row_nbytes // chunk.num_layers
    number = band_count(min(part_rows, chunk.rows) * row_nbytes, chunk.num_layers)
    values, digests = [], []
    for first in range(0, chunk.rows, part_rows):
        shape = Shape(min(part_rows, chunk.rows - first), chunk.num_layers, cell, number)
        at = slice(first * row_nbytes, first * row_nbytes + shape.nbytes)
        if number > 1:
            digests.append(split(payload[at], shape, scratch[at]))
        values.append((scratch if number > 1 else payload)[at])
    return Layout(part_rows, number, b"".join(digests), "xxh3"), values


def join(value: Buffer, shape: Shape, rows: memoryview) -> None:
    """Write all layers of a value to `rows`, `[tokens, layers, cell]`."""
    if shape.layers % shape.bands == 0:
        run = f"V{shape.layers // shape.bands * shape.cell}"
        value_BT = np.frombuffer(value, run).reshape(shape.bands, shape.rows)
        np.frombuffer(rows, run).reshape(shape.rows, shape.bands)[...] = value_BT.T
        return
    into_TLC = np.frombuffer(rows, np.uint8).reshape(shape[:3])
    held = np.frombuffer(value, np.uint8)
    for band in bands(shape, 0, shape.layers):
        _copy(_band_of(held, shape, band), into_TLC[:, band.start : band.stop])


def take(
    held: Buffer, band: Band, shape: Shape, rows: range, layers: range, out_TLC: np.ndarray
) -> None:
    """Write those of `rows` and `layers` that are in a band to `out_TLC`.

    Args:
        held: the band's bytes.
        out_TLC: `[rows, layers, cell]`.
    """
    band_TLC = np.frombuffer(held, np.uint8).reshape(shape.rows, -1, shape.cell)
    start, stop = max(band.start, layers.start), min(band.stop, layers.stop)
    out_TLC[:, start - layers.start : stop - layers.start] = band_TLC[
        rows.start : rows.stop, start - band.start : stop - band.start
    ]


def are_intact(value: memoryview, layout: Layout, shape: Shape, number: int) -> bool:
    """Return whether all bands of the `number`-th value of a chunk are as they were stored."""
    return all(
        is_intact(value[start:stop], layout, shape, number, band)
        for band, start, stop in _spans(shape)
    )


def is_intact(held: memoryview, layout: Layout, shape: Shape, value: int, band: Band) -> bool:
    """Return whether a band of the `value`-th value of a chunk is as it was stored."""
    at = (value * shape.bands + band.number) * DIGEST_BYTES
    found = xxh3_128_digest(held) if layout.sums == "xxh3" else digest(held)
    return found == layout.digests[at : at + DIGEST_BYTES]


def _spans(shape: Shape) -> Iterator[tuple[Band, int, int]]:
    """Yield each band of a value with the bytes that it is."""
    for band in bands(shape, 0, shape.layers):
        nbytes = shape.rows * (band.stop - band.start) * shape.cell
        yield band, band.offset, band.offset + nbytes


def _band_of(value: np.ndarray, shape: Shape, band: Band) -> np.ndarray:
    layers = band.stop - band.start
    nbytes = shape.rows * layers * shape.cell
    return value[band.offset : band.offset + nbytes].reshape(shape.rows, layers, shape.cell)


def _copy(source_TLC: np.ndarray, target_TLC: np.ndarray) -> None:
    """Copy one token's layers of a band at a time: twice as fast as numpy by the byte."""
    tokens, layers, cell = source_TLC.shape
    run = np.dtype(f"V{layers * cell}")
    # Views: within a token the layers of a band are neighbours on both sides.
    source_TR = source_TLC.reshape(tokens, layers * cell).view(run)
    target_TR = target_TLC.reshape(tokens, layers * cell).view(run)
    target_TR[:, 0] = source_TR[:, 0]
