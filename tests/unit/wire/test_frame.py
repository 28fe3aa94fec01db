"""The layout of a frame, byte by byte."""

import numpy as np
import pytest

from routereplay.wire import Chunk, Drop, decode_frame, frame_bytes, iter_frames
from routereplay.wire.errors import InvalidRoutes, MalformedFrame, UnsupportedWireVersion
from routereplay.wire.routes import check_rows, dtype_for, numpy_dtype

DROP = Drop(upload_id="u", request_id="r", choice=0, reason="queue_full")


def test_a_frame_begins_with_its_magic_and_version():
    assert frame_bytes(DROP)[:5] == b"RRF\n\x01"


def test_another_version_is_refused_by_name():
    body = bytearray(frame_bytes(DROP))
    body[4] = 2

    with pytest.raises(UnsupportedWireVersion, match="wire version 2; this side reads 1"):
        decode_frame(bytes(body))


def test_a_header_over_the_limit_is_refused_before_it_is_read():
    with pytest.raises(MalformedFrame, match="at most 16 are read"):
        decode_frame(frame_bytes(DROP), max_header_bytes=16)


def test_a_payload_length_beyond_the_body_is_refused():
    body = bytearray(frame_bytes(DROP, [b"x" * 10]))
    body[16:24] = (2**60).to_bytes(8, "little")

    with pytest.raises(MalformedFrame, match="cut short"):
        decode_frame(bytes(body))


def test_two_frames_where_one_is_expected_are_refused():
    with pytest.raises(MalformedFrame, match="expected one frame, found 2"):
        decode_frame(frame_bytes(DROP) * 2)


def test_payloads_are_views_of_the_body_and_not_copies():
    rows = np.arange(64, dtype=np.uint8)
    header = Chunk(
        upload_id="u", request_id="r", choice=0, seq=0, first_row=0, rows=1,
        num_layers=8, topk=8, num_experts=64, dtype="uint8", digest=b"",
    )  # fmt: skip
    body = frame_bytes(header, [rows.data])

    (frame,) = iter_frames(body)

    assert np.shares_memory(np.frombuffer(frame.payload, np.uint8), np.frombuffer(body, np.uint8))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 2), np.uint8), "expected .tokens, layers, topk."),
        (np.zeros((2, 2, 2), np.int64), "int64"),
        (np.full((2, 2, 2), 9, np.uint8), "expert id 9 in a model of 8"),
    ],
)
def test_rows_of_the_wrong_shape_dtype_or_range_are_refused(array, words):
    with pytest.raises(InvalidRoutes, match=f"here: .*{words}"):
        check_rows(array, 8, "here")


def test_dtypes_follow_vllms_rule():
    assert [dtype_for(n) for n in (8, 256, 257, 512)] == ["uint8", "uint8", "uint16", "uint16"]
    assert numpy_dtype("uint16").str == "<u2"
    with pytest.raises(InvalidRoutes, match="int32"):
        numpy_dtype("int32")
