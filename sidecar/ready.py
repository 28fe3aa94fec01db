"""Rows of one record that an answer holds, and how the answer's header describes them."""

from __future__ import annotations

from dataclasses import dataclass

from routereplay.sidecar.reading import Piece, Slice, pieces
from routereplay.wire.records import RecordManifest, RoutesItem, RowSource


@dataclass(slots=True)
class Ready:
    """Rows of a record, whose every byte was verified once."""

    manifest: RecordManifest
    parts: list[Slice]
    """Where the rows are, in order and without a gap: more than one for a delta."""
    tokens: memoryview
    parent: int | None
    rows_digest: bytes = b""
    """Empty as long as the chunks' own digests say it all."""

    @property
    def is_whole(self) -> bool:
        """Whether its rows are all chunks of its manifest."""
        (part, *others), manifest = self.parts, self.manifest
        return (
            not others
            and part.manifest is manifest
            and (part.rows, part.layers) == (manifest.rows, manifest.num_layers)
        )

    @property
    def token_start(self) -> int:
        """Token index of the first row."""
        return self.parts[0].token_start

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(part.nbytes for part in self.parts)

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
        tokens_nbytes=len(ready.tokens),
        parent=ready.parent,
        sources=sources_of(ready),
    )


def sources_of(ready: Ready) -> tuple[RowSource, ...]:
    """Return whose rows these are, or nothing if they are the record's own."""
    own = ready.manifest.request_id, ready.manifest.choice
    sources = [
        RowSource(
            request_id=part.key.request_id,
            choice=part.key.choice,
            token_start=part.token_start,
            rows=part.rows,
        )
        for part in ready.parts
    ]
    named = [(source.request_id, source.choice) for source in sources]
    return () if named == [own] else tuple(sources)
