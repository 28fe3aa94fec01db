"""How long byte strings are split into values of bounded size, and what they are called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from routereplay.sidecar.store import keys
from routereplay.sidecar.store.base import Layout, RecordKey, StagedChunk, StoredRecord
from routereplay.wire.records import ChunkRef


class Part(NamedTuple):
    """Bytes `[start, stop)` of something are the value at `key`."""

    key: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the value."""
        return self.stop - self.start


def rows_per_value(row_nbytes: int, value_bytes: int) -> int:
    """Return how many whole rows fit a value; at least one."""
    return max(value_bytes // row_nbytes, 1)


def chunk_parts(
    tag: str, upload_id: str, seq: int, chunk: StagedChunk | ChunkRef, layout: Layout
) -> list[Part]:
    """Return the values that a chunk is split into, at row boundaries."""
    split = chunk.nbytes // chunk.rows * layout.part_rows
    return _split(tag, upload_id, f"c{seq}", chunk.digest, split, chunk.nbytes, layout.bands)


def token_parts(
    tag: str, upload_id: str, token_digest: bytes, nbytes: int, part_bytes: int
) -> list[Part]:
    """Return the values that the token ids are split into."""
    return _split(tag, upload_id, "k", token_digest, part_bytes, nbytes)


def record_token_parts(key: RecordKey, record: StoredRecord) -> list[Part]:
    """Return the values of a record's token ids."""
    manifest = record.manifest
    return token_parts(
        key.tag,
        record.upload_id,
        manifest.token_digest,
        4 * manifest.num_tokens,
        record.token_part_bytes,
    )


def record_chunk_parts(key: RecordKey, record: StoredRecord, seq: int) -> list[Part]:
    """Return the values of chunk `seq` of a record."""
    chunk = record.manifest.chunks[seq]
    return chunk_parts(key.tag, record.upload_id, seq, chunk, record.layouts[seq])


def record_parts(key: RecordKey, record: StoredRecord) -> Iterator[Part]:
    """Yield every value of a record."""
    yield from record_token_parts(key, record)
    for seq in range(len(record.manifest.chunks)):
        yield from record_chunk_parts(key, record, seq)


def _split(
    tag: str, upload_id: str, what: str, digest: bytes, split: int, nbytes: int, bands: int = 1
) -> list[Part]:
    how = f"{split}x{bands}"
    return [
        Part(
            keys.blob(tag, upload_id, what, digest, how, number),
            start,
            min(start + split, nbytes),
        )
        for number, start in enumerate(range(0, nbytes, split))
    ]
