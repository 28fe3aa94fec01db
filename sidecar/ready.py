"""Rows of one record that an answer holds, and how the answer's header describes them."""

from __future__ import annotations

from dataclasses import dataclass, field

from routereplay.sidecar.slices import Piece, Slice, pieces
from routereplay.sidecar.store.base import RecordKey, StoredRecord
from routereplay.wire.records import RecordManifest, RoutesItem, RowSource


@dataclass(slots=True)
class Ready:
    """Rows of a record, whose every byte was verified once."""

    key: RecordKey
    record: StoredRecord
    parts: list[Slice]
    """Where the rows are, in order and without a gap: more than one for a delta."""
    padded_tokens: memoryview | None
    """Its token ids, with zeros up to a multiple of 64 bytes; None as long as they are not read."""
    parent: int | None = None
    rows_digest: bytes = b""
    """Empty as long as the chunks' own digests say it all."""
    manifest: RecordManifest = field(init=False)
    rows: int = field(init=False)
    """Rows of all parts."""
    nbytes: int = field(init=False)
    """Bytes of all rows."""
    is_whole: bool = field(init=False)
    """Whether its rows are all chunks of its manifest."""

    def __post_init__(self) -> None:
        self.manifest = self.record.manifest
        self.rows = sum([part.rows for part in self.parts])
        self.nbytes = sum([part.nbytes for part in self.parts])
        self.is_whole = (
            len(self.parts) == 1
            and self.parts[0].record is self.record
            and self.rows == self.manifest.rows
            and self.layers == self.manifest.num_layers
        )

    @property
    def tokens(self) -> memoryview:
        """Its int32 token ids, once they are read."""
        if self.padded_tokens is None:
            msg = f"the token ids of {self.key} were not read"
            raise ValueError(msg)
        return self.padded_tokens[: self.tokens_nbytes]

    @property
    def tokens_nbytes(self) -> int:
        """Bytes of its token ids."""
        return 4 * self.manifest.num_tokens

    @property
    def token_start(self) -> int:
        """Token index of the first row."""
        return self.parts[0].token_start

    @property
    def layer_start(self) -> int:
        """First layer, from 0."""
        return self.parts[0].layer_start

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.parts[0].layers

    @property
    def pieces(self) -> list[Piece]:
        """The chunks that its rows are in."""
        return [piece for part in self.parts for piece in pieces(part)]


def routes_item(ready: Ready, rows_offset: int, tokens_offset: int) -> RoutesItem:
    """Return what the header says of an item whose bytes are at these offsets of the payload."""
    return RoutesItem(
        manifest=ready.manifest,
        token_start=ready.token_start,
        rows=ready.rows,
        layer_start=ready.layer_start,
        layers=ready.layers,
        rows_offset=rows_offset,
        rows_nbytes=ready.nbytes,
        rows_digest=ready.rows_digest,
        tokens_offset=tokens_offset,
        tokens_nbytes=ready.tokens_nbytes,
        parent=ready.parent,
        sources=sources_of(ready),
    )


def sources_of(ready: Ready) -> tuple[RowSource, ...]:
    """Return whose rows these are, or nothing if they are the record's own."""
    if len(ready.parts) == 1 and ready.parts[0].key == ready.key:
        return ()
    return tuple(
        RowSource(
            request_id=part.key.request_id,
            choice=part.key.choice,
            token_start=part.token_start,
            rows=part.rows,
        )
        for part in ready.parts
    )
