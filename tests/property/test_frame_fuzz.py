"""Frames whose prefix and checksum are right and whose header is anything at all."""

import resource
import struct
import zlib

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fuzz import LONG, count

from routereplay.sidecar.checks import fault
from routereplay.wire import Chunk, Drop, Routes, Seal
from routereplay.wire.errors import RouteReplayError, WireError
from routereplay.wire.frame import iter_frames

FUZZED = "frames whose headers are anything at all, by hypothesis"
EXAMPLES = 20_000 if LONG else 300
__all__ = ["count"]  # a fixture
NAMES = sorted({name for kind in (Chunk, Drop, Routes, Seal) for name in kind.__struct_fields__})
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.floats(), st.binary(max_size=20), st.text(max_size=20)),
    st.integers(-(2**63), 2**64 - 1),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)
HEADERS = st.one_of(
    st.binary(max_size=200),
    VALUES.map(msgpack.packb),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["chunk", "seal", "drop", "routes", "other"])},
        optional=dict.fromkeys(NAMES, VALUES),
    ).map(msgpack.packb),
)


def frame(header, payload, claimed):
    prefix = struct.pack("<4sB3xIIQ8x", b"RRF\n", 1, len(header), zlib.crc32(header), claimed)
    head = prefix + header
    return head + bytes(-len(head) % 64) + payload + bytes(-len(payload) % 64)


@settings(max_examples=EXAMPLES)
@given(
    header=HEADERS,
    payload=st.binary(max_size=100),
    claimed=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)
def test_a_header_is_one_of_ours_or_refused(count, header, payload, claimed):
    count.one()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    body = frame(header, payload, len(payload) if claimed is None else claimed)
    try:
        found = list(iter_frames(body))
    except WireError:
        found = []
    for one in found:
        assert isinstance(one.header, Chunk | Drop | Routes | Seal)
        problem = fault(one)
        assert problem is None or isinstance(problem, RouteReplayError)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB: whatever a header claims, its own few bytes are all that it costs.
    assert after - before < 64 * 1024
