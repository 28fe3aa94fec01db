"""Values are bounded, split at rows, and named by their content."""

from support.frames import make_upload

from routereplay.sidecar.store import keys, parts
from routereplay.sidecar.store.base import Layout, RecordKey, StagedChunk, StoredRecord

KEY = RecordKey("t:one", "request", 0)


def staged(rows, row_nbytes, part_rows):
    layout = Layout(part_rows)
    return StagedChunk(0, rows, rows * row_nbytes, bytes(16), layout, row_nbytes, 1, 8, "uint8")


def test_values_end_at_rows_and_cover_the_chunk():
    chunk = staged(rows=10, row_nbytes=7, part_rows=4)
    found = parts.chunk_parts("t:one", "up", 3, chunk, chunk.layout)

    assert [(part.start, part.stop) for part in found] == [(0, 28), (28, 56), (56, 70)]


def test_rows_per_value_never_is_zero():
    assert parts.rows_per_value(100, 1000) == 10
    assert parts.rows_per_value(1001, 1000) == 1


def test_two_splits_of_one_chunk_never_share_a_key():
    chunk = staged(rows=10, row_nbytes=7, part_rows=4)
    one, other, banded = (
        {part.key for part in parts.chunk_parts("t:one", "up", 0, chunk, layout)}
        for layout in (Layout(4), Layout(5), Layout(4, 2))
    )

    assert one.isdisjoint(other)
    assert one.isdisjoint(banded)


def test_the_values_of_a_record_are_its_tokens_and_its_chunks():
    manifest = make_upload("request").manifest
    record = StoredRecord(manifest, "up", (Layout(10),) * len(manifest.chunks), 16)
    found = list(parts.record_parts(KEY, record))

    assert sum(part.nbytes for part in found) == 4 * 33 + 32 * manifest.row_nbytes
    assert len({part.key for part in found}) == len(found)


def test_every_key_of_a_trajectory_has_its_hash_tag():
    names = [
        keys.requests("t:one"),
        keys.status("t:one", "request"),
        keys.upload("t:one", "up"),
        keys.record(KEY),
        keys.blob("t:one", "up", "c0", bytes(16), "4x1", 0),
    ]

    assert {name[name.index("{") : name.index("}") + 1] for name in names} == {"{t:one}"}


def test_a_tag_leads_back_to_its_trajectory():
    assert keys.trajectory_of(keys.tag_of("ns", "request", "a:b")) == "a:b"
    assert keys.trajectory_of(keys.tag_of("ns", "request", None)) is None
