"""What arrives is compared with what was recorded, whichever digests vouch for it."""

import msgspec
import numpy as np
import pytest
from support.frames import make_upload

from routereplay.client._decode import decode_routes, decode_trajectories
from routereplay.wire import Routes, RoutesItem, digest, frame_bytes
from routereplay.wire.errors import CorruptRecord, MalformedFrame
from routereplay.wire.frame import aligned
from routereplay.wire.records import FetchedTrajectory


@pytest.fixture
def upload():
    return make_upload("whole", seed=7)


def answer(upload, sent, **changes):
    """A frame whose rows are the record's chunks, with no digest of their own."""
    manifest = upload.manifest
    tokens_at = aligned(len(sent))
    item = RoutesItem(
        manifest=manifest,
        token_start=manifest.row_start,
        rows=manifest.rows,
        layer_start=0,
        layers=manifest.num_layers,
        rows_offset=0,
        rows_nbytes=len(sent),
        rows_digest=b"",
        tokens_offset=tokens_at,
        tokens_nbytes=upload.token_ids.nbytes,
    )
    tokens = upload.token_ids.tobytes()
    payload = sent + bytes(tokens_at - len(sent)) + tokens + bytes(-len(tokens) % 64)
    return frame_bytes(Routes(items=(msgspec.structs.replace(item, **changes),)), [payload])


def test_whole_chunks_are_vouched_for_by_their_recorder(upload):
    _, (routes,) = decode_routes(answer(upload, upload.experts.tobytes()))

    assert len(upload.manifest.chunks) > 1
    assert np.array_equal(routes.experts, upload.experts)


def test_a_byte_that_changed_in_any_chunk_is_seen(upload):
    at = 0
    for chunk in upload.manifest.chunks:
        rows = bytearray(upload.experts.tobytes())
        rows[at + chunk.nbytes - 1] ^= 1
        at += chunk.nbytes

        with pytest.raises(CorruptRecord, match="not those the store sent"):
            decode_routes(answer(upload, bytes(rows)))


def test_a_part_of_the_chunks_is_not_vouched_for(upload):
    first = upload.manifest.chunks[0]
    rows = upload.experts[: first.rows].tobytes()

    with pytest.raises(CorruptRecord, match="not those the store sent"):
        decode_routes(answer(upload, rows, rows=first.rows))


@pytest.mark.parametrize(
    "lie",
    [
        {"rows_offset": -64},
        {"rows_nbytes": -1},
        {"rows": -1},
        {"rows": 0, "rows_nbytes": 0, "layers": 0},
        {"layers": 0},
        {"layers": 2**40},
        {"layer_start": 1},
        {"layer_start": -1},
        {"token_start": -1},
        {"token_start": 2},
        {"tokens_offset": -4},
        {"tokens_nbytes": 4},
    ],
    ids=str,
)
def test_a_header_that_lies_of_an_item_is_malformed(upload, lie):
    with pytest.raises(MalformedFrame):
        decode_routes(answer(upload, upload.experts.tobytes(), **lie))


@pytest.mark.parametrize(
    "lie",
    [
        {"topk": 0},
        {"topk": -2},
        {"num_experts": 0},
        {"num_experts": 2**60, "dtype": "bitpack"},
        {"num_layers": 0},
        {"prompt_len": 2**40},
        {"completion_len": 5, "token_digest": digest(b"")},
    ],
    ids=str,
)
def test_a_manifest_that_lies_is_malformed(upload, lie):
    with pytest.raises(MalformedFrame):
        decode_routes(answer(upload.changed(**lie), upload.experts.tobytes()))


@pytest.mark.parametrize("index", [1, -1])
def test_a_turn_that_is_none_of_the_items_is_malformed(index):
    turns = FetchedTrajectory(trajectory_id="t", turns=(), items=(index,))

    with pytest.raises(MalformedFrame, match="item"):
        decode_trajectories(frame_bytes(Routes(items=(), trajectories=(turns,))))
