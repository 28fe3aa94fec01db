"""No bytes make the ingest checks fail in a way that the contract does not know."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st
from support.frames import make_upload

from routereplay.sidecar.checks import fault, frames_of
from routereplay.wire import RouteReplayError, frame_bytes, iter_frames
from routereplay.wire.errors import WireError

BODY = make_upload("property", prompt_len=3, completion_len=2, chunk_rows=2).body


@given(st.binary(max_size=400))
def test_random_bytes_are_a_wire_error(noise):
    with contextlib.suppress(WireError):
        assert list(frames_of(noise))


@given(st.integers(0, len(BODY) - 1), st.integers(1, 255), st.integers(0, len(BODY)))
def test_a_damaged_body_is_never_taken_for_the_whole_one(at, mask, cut):
    damaged = bytearray(BODY)
    damaged[at] ^= mask
    try:
        frames = list(frames_of(bytes(damaged[: cut or None])))
    except WireError:
        return
    original = {bytes(frame.payload) for frame in iter_frames(BODY)}
    for frame in frames:
        assert isinstance(fault(frame), RouteReplayError) or bytes(frame.payload) in original


NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.integers(-2, 300)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("seq", "first_row", "rows", "num_layers", "topk", "num_experts", "choice"), NUMBERS
        ),
    ),
    st.text(max_size=20),
)
def test_any_numbers_in_a_chunk_header_pass_or_are_refused(changes, request_id):
    upload = make_upload("property", prompt_len=3, completion_len=2)
    header = upload.chunk_header(0, **changes)
    frame = frame_bytes(header, [upload.chunk_rows(0).data])
    renamed = frame_bytes(upload.chunk_header(0, request_id=request_id), [b""])

    (found,) = frames_of(frame)
    assert fault(found) is None or isinstance(fault(found), RouteReplayError)
    (found,) = frames_of(renamed)
    assert isinstance(fault(found), RouteReplayError)
