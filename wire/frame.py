"""Bytes to headers and back. No other module touches the layout of a frame.

    offset  size  field
    0       4     magic "RRF\\n"
    4       1     wire version
    5       3     zero
    8       4     header length, little-endian
    12      4     CRC-32 of the header
    16      8     payload length
    24      8     zero
    32      n     header: msgpack of one of the structs of `records`
    ..            zero padding to a multiple of 64
    ..      m     payload: raw bytes
    ..            zero padding to a multiple of 64

Frames follow each other without anything between them, and everything in a payload
that is an array starts at a multiple of 64, so a reader makes views and never copies.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from routereplay.wire.digest import Buffer
from routereplay.wire.errors import MalformedFrame, UnsupportedWireVersion
from routereplay.wire.records import Header
from routereplay.wire.version import WIRE_VERSION

ALIGNMENT = 64
MAX_HEADER_BYTES = 256 * 1024
"""Longest header a store accepts; a reader of its own store's answers may allow more."""

_MAGIC = b"RRF\n"
_PREFIX = struct.Struct("<4sB3xIIQ8x")
PREFIX_BYTES = _PREFIX.size

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header)


class FrameSizes(NamedTuple):
    """What a frame's prefix says: header bytes, their CRC-32, payload bytes."""

    header: int
    crc: int
    payload: int

    @property
    def payload_offset(self) -> int:
        """Offset of the payload from the start of the frame."""
        return aligned(PREFIX_BYTES + self.header)

    @property
    def total(self) -> int:
        """Bytes of the whole frame with its padding."""
        return aligned(self.payload_offset + self.payload)


class Frame(NamedTuple):
    """A decoded frame; `payload` is a view of the buffer it was decoded from."""

    header: Header
    payload: memoryview


def aligned(offset: int) -> int:
    """Return the smallest multiple of 64 that is at least `offset`."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def padding(offset: int) -> bytes:
    """Return the zero bytes that take `offset` to the next multiple of 64."""
    return bytes(aligned(offset) - offset)


def encode_head(header: Header, payload_bytes: int) -> bytes:
    """Return a frame up to its payload, for a sender that never holds the payload whole.

    The payload follows, and then `padding(payload_bytes)`.
    """
    encoded = _encoder.encode(header)
    prefix = _PREFIX.pack(_MAGIC, WIRE_VERSION, len(encoded), zlib.crc32(encoded), payload_bytes)
    head = prefix + encoded
    return head + padding(len(head))


def encode_frame(header: Header, payload: Sequence[Buffer] = ()) -> list[Buffer]:
    """Return the buffers of one frame, in order; payload buffers are passed on, not copied."""
    payload_bytes = sum(memoryview(part).nbytes for part in payload)
    return [encode_head(header, payload_bytes), *payload, padding(payload_bytes)]


def frame_bytes(header: Header, payload: Sequence[Buffer] = ()) -> bytes:
    """Return one frame as a single bytes object."""
    return b"".join(bytes(part) for part in encode_frame(header, payload))


def read_prefix(buffer: Buffer, *, max_header_bytes: int = MAX_HEADER_BYTES) -> FrameSizes:
    """Parse the first `PREFIX_BYTES` of a frame.

    Raises:
        UnsupportedWireVersion: the frame is of another version.
        MalformedFrame: it is no frame, is cut short, or its header is too long.
    """
    view = memoryview(buffer)
    if len(view) < PREFIX_BYTES:
        msg = f"{len(view)} bytes where a frame's prefix of {PREFIX_BYTES} was expected"
        raise MalformedFrame(msg)
    magic, version, header, crc, payload = _PREFIX.unpack_from(view)
    if magic != _MAGIC:
        msg = f"a frame begins with {_MAGIC!r}; found {magic!r}"
        raise MalformedFrame(msg)
    if version != WIRE_VERSION:
        msg = (
            f"frame of wire version {version}; this side reads {WIRE_VERSION}. "
            "Run the same routereplay release in the recorder, the store and the trainer."
        )
        raise UnsupportedWireVersion(msg, found=version, expected=WIRE_VERSION)
    if header > max_header_bytes:
        msg = f"frame header of {header} bytes; at most {max_header_bytes} are read"
        raise MalformedFrame(msg)
    return FrameSizes(header, crc, payload)


def decode_header(encoded: Buffer, crc: int) -> Header:
    """Decode a header's bytes, or raise `MalformedFrame`."""
    if zlib.crc32(encoded) != crc:
        msg = "frame header does not match its checksum"
        raise MalformedFrame(msg)
    try:
        header: Header = _decoder.decode(encoded)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        msg = f"frame header is not one of chunk, seal, drop or routes: {error}"
        raise MalformedFrame(msg) from error
    return header


def iter_frames(buffer: Buffer, *, max_header_bytes: int = MAX_HEADER_BYTES) -> Iterator[Frame]:
    """Decode the frames that fill `buffer`, as views of it.

    Raises:
        UnsupportedWireVersion, MalformedFrame: see `read_prefix`; also when the last
            frame is cut short or anything follows it.
    """
    view = memoryview(buffer)
    offset = 0
    while offset < len(view):
        sizes = read_prefix(view[offset:], max_header_bytes=max_header_bytes)
        if offset + sizes.total > len(view):
            msg = f"frame of {sizes.total} bytes is cut short: {len(view) - offset} bytes are left"
            raise MalformedFrame(msg)
        head = offset + PREFIX_BYTES
        start = offset + sizes.payload_offset
        header = decode_header(view[head : head + sizes.header], sizes.crc)
        yield Frame(header, view[start : start + sizes.payload])
        offset += sizes.total


def decode_frame(buffer: Buffer, *, max_header_bytes: int = MAX_HEADER_BYTES) -> Frame:
    """Decode a buffer that holds exactly one frame."""
    frames = list(iter_frames(buffer, max_header_bytes=max_header_bytes))
    if len(frames) != 1:
        msg = f"expected one frame, found {len(frames)}"
        raise MalformedFrame(msg)
    return frames[0]
