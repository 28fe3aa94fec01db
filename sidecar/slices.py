"""Which rows and layers of a record are wanted, and which of its chunks they are in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from routereplay.sidecar.store.base import RecordKey, StoredRecord
from routereplay.wire.errors import BadRequest
from routereplay.wire.records import RecordManifest

Range: TypeAlias = tuple[int, int | None]
"""Half-open; None is the end of what there is."""

_NOWHERE = memoryview(b"")


class Slice(NamedTuple):
    """Rows `[token_start, token_stop)` of layers `[layer_start, layer_stop)` of a record."""

    key: RecordKey
    record: StoredRecord
    token_start: int
    token_stop: int
    layer_start: int
    layer_stop: int
    cell: int
    """Bytes of the experts of one layer of one token."""

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
        return self.rows * self.layers * self.cell


class Piece(NamedTuple):
    """What a slice takes of one chunk, and the memory to put it in, once there is some."""

    part: Slice
    seq: int
    start: int
    """Of the rows within the chunk."""
    stop: int
    nbytes: int
    """Bytes of its place."""
    is_whole: bool
    """Whether it is all of the chunk."""
    into: memoryview = _NOWHERE
    """`[rows, layers of the slice, cell]`."""
    owner: int = 0
    """Of the item that it is of."""

    @property
    def rows(self) -> int:
        """Rows of the piece."""
        return self.stop - self.start

    @property
    def has_all_layers(self) -> bool:
        """Whether it is all layers of its rows."""
        return self.part.layers == self.part.manifest.num_layers


def cut(key: RecordKey, record: StoredRecord, tokens: Range | None, layers: Range | None) -> Slice:
    """Return the part of a record that was asked for.

    Tokens are cut to those that have a row, as a token without one is a normal thing;
    layers that the model does not have are an error of the caller.
    """
    manifest = record.manifest
    row_start, num_layers = manifest.row_start, manifest.num_layers
    row_stop = row_start + manifest.rows
    start, stop = tokens or (0, None)
    start = min(max(start, row_start), row_stop)
    stop = row_stop if stop is None else max(min(stop, row_stop), start)
    first, last = layers or (0, None)
    last = num_layers if last is None else last
    if not 0 <= first < last <= num_layers:
        msg = f"layers {first}:{last} of {key.request_id}: the model has 0:{num_layers}"
        raise BadRequest(msg)
    return Slice(key, record, start, stop, first, last, manifest.row_nbytes // num_layers)


def pieces(part: Slice, into: memoryview = _NOWHERE, owner: int = 0) -> Iterator[Piece]:
    """Yield the chunks that hold a row of a slice, in order, with places in `into`."""
    manifest = part.manifest
    first, last = part.token_start - manifest.row_start, part.token_stop - manifest.row_start
    has_all_layers, width = part.layers == manifest.num_layers, part.layers * part.cell
    row = at = 0
    for seq, chunk in enumerate(manifest.chunks):
        start, stop = max(first - row, 0), min(last - row, chunk.rows)
        if start < stop:
            is_whole = has_all_layers and stop - start == chunk.rows
            nbytes = (stop - start) * width
            place = into[at : at + nbytes]
            yield Piece(part, seq, start, stop, nbytes, is_whole, place, owner)
            at += nbytes
        row += chunk.rows


def placed(wanted: list[Piece], into: memoryview) -> list[Piece]:
    """Return pieces with places in `into`, one behind the other."""
    found, at = [], 0
    for piece in wanted:
        found.append(piece._replace(into=into[at : at + piece.nbytes]))
        at += piece.nbytes
    return found
