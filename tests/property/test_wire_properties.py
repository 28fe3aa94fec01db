"""The codec and the ids under any input."""

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routereplay.wire import (
    Chunk,
    Drop,
    RunningDigest,
    decode_frame,
    digest,
    frame_bytes,
    is_valid_id,
    iter_frames,
    normalize_id,
)
from routereplay.wire.errors import WireError
from routereplay.wire.frame import PREFIX_BYTES, read_prefix
from routereplay.wire.lineage import TurnSpan, common_prefix, link_turns

texts = st.text(max_size=20)
chunks = st.builds(
    Chunk,
    upload_id=texts,
    request_id=texts,
    choice=st.integers(0, 9),
    trajectory_id=st.none() | texts,
    seq=st.integers(0, 99),
    first_row=st.integers(0, 2**40),
    rows=st.integers(0, 2**40),
    num_layers=st.integers(0, 200),
    topk=st.integers(0, 64),
    num_experts=st.integers(0, 1024),
    dtype=st.sampled_from(["uint8", "uint16"]),
    digest=st.binary(min_size=16, max_size=16),
)
drops = st.builds(Drop, upload_id=texts, request_id=texts, choice=st.integers(0, 9), reason=texts)
frames = st.tuples(chunks | drops, st.binary(max_size=300))


@given(st.lists(frames, max_size=4))
def test_frames_that_follow_each_other_decode_to_what_was_encoded(items):
    body = b"".join(frame_bytes(header, [payload]) for header, payload in items)

    decoded = [(frame.header, bytes(frame.payload)) for frame in iter_frames(body)]

    assert decoded == items


@given(frames, st.integers(0, 300))
def test_a_payload_in_pieces_is_the_same_frame(item, cut):
    header, payload = item

    assert frame_bytes(header, [payload[:cut], payload[cut:]]) == frame_bytes(header, [payload])


@given(frames)
def test_payloads_are_aligned_for_every_dtype(item):
    body = frame_bytes(*item[:1], [item[1]])

    assert read_prefix(body).payload_offset % 64 == 0
    assert len(body) % 64 == 0


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_with_a_wire_error(body):
    if body:
        with pytest.raises(WireError):
            list(iter_frames(body))


@given(frames, st.data())
def test_a_damaged_or_cut_frame_never_decodes_to_another_header(item, data):
    body = bytearray(frame_bytes(item[0], [item[1]]))
    used = PREFIX_BYTES + read_prefix(body).header
    position = data.draw(st.integers(0, used - 1))
    body[position] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_frame(bytes(body))
    except WireError:
        return
    assert decoded.header == item[0]


@given(frames, st.data())
def test_a_cut_frame_is_refused(item, data):
    body = frame_bytes(item[0], [item[1]])

    with pytest.raises(WireError):
        decode_frame(body[: data.draw(st.integers(1, len(body) - 1))])


@given(frames)
def test_headers_are_plain_msgpack_that_any_implementation_reads(item):
    body = frame_bytes(item[0], [item[1]])
    sizes = read_prefix(body)

    plain = msgpack.unpackb(body[PREFIX_BYTES : PREFIX_BYTES + sizes.header])

    assert plain["kind"] in ("chunk", "drop")
    assert plain["request_id"] == item[0].request_id


@given(st.text(max_size=300))
def test_any_text_normalizes_to_a_valid_id_and_stays_there(text):
    key = normalize_id(text)

    assert is_valid_id(key)
    assert normalize_id(key) == key


@given(st.lists(st.binary(max_size=50)))
def test_the_running_digest_is_the_digest_of_the_concatenation(parts):
    running = RunningDigest()
    for part in parts:
        running.update(part)

    assert running.digest() == digest(b"".join(parts)) == digest(*parts)


small_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@st.composite
def spans(draw, latest_start=3):
    turns = draw(st.lists(st.tuples(small_tokens, st.integers(0, latest_start)), max_size=6))
    return [
        TurnSpan(np.asarray(tokens, np.int32), min(start, len(tokens) - 1), len(tokens) - 1)
        for tokens, start in turns
    ]


@settings(max_examples=300)
@given(spans())
def test_every_recorded_row_is_found_along_the_links(turns):
    links = link_turns(turns)

    for index, turn in enumerate(turns):
        for position in range(turn.row_start, turn.row_stop):
            owner = _follow(links, index, position)
            assert links[owner].new_from <= position < turns[owner].row_stop
            assert common_prefix(turns[owner].token_ids, turn.token_ids) > position


@settings(max_examples=300)
@given(spans(latest_start=0))
def test_full_rows_are_sent_once_by_the_turn_that_captured_them_first(turns):
    links = link_turns(turns)

    for index, turn in enumerate(turns):
        for position in range(turn.row_stop):
            owner = _follow(links, index, position)
            assert owner == _first_capture(turns, index, position)


def _follow(links, index, position):
    """The turn whose sent rows hold `position` of turn `index`."""
    while position < links[index].new_from and links[index].parent is not None:
        index = links[index].parent
    return index


def _first_capture(turns, index, position):
    """The first turn that recorded the row, by definition."""
    return next(
        earlier
        for earlier in range(index + 1)
        if position < turns[earlier].row_stop
        and common_prefix(turns[earlier].token_ids, turns[index].token_ids) > position
    )
