"""The contract between engine, store and trainer: routes, records, frames, errors.

A leaf: no I/O, no logging, no settings. Everything here is importable with numpy,
msgspec and blake3 alone.
"""

from routereplay.wire.codec import Codec, dtype_of, read_rows, write_rows
from routereplay.wire.digest import DIGEST_BYTES, RunningDigest, digest
from routereplay.wire.errors import RouteReplayError
from routereplay.wire.frame import (
    Frame,
    decode_frame,
    encode_frame,
    frame_bytes,
    iter_frames,
)
from routereplay.wire.ids import check_id, is_valid_id, normalize_id
from routereplay.wire.records import (
    Chunk,
    ChunkRef,
    Drop,
    FetchRequest,
    ParentRef,
    PolicySpan,
    RecordManifest,
    Routes,
    RoutesItem,
    RowSource,
    Seal,
    TurnStatus,
)
from routereplay.wire.routes import RoutedExperts, check_rows, dtype_for, numpy_dtype
from routereplay.wire.version import MEDIA_TYPE, WIRE_VERSION

__all__ = [
    "DIGEST_BYTES",
    "MEDIA_TYPE",
    "WIRE_VERSION",
    "Chunk",
    "ChunkRef",
    "Codec",
    "Drop",
    "FetchRequest",
    "Frame",
    "ParentRef",
    "PolicySpan",
    "RecordManifest",
    "RouteReplayError",
    "RoutedExperts",
    "Routes",
    "RoutesItem",
    "RowSource",
    "RunningDigest",
    "Seal",
    "TurnStatus",
    "check_id",
    "check_rows",
    "decode_frame",
    "digest",
    "dtype_for",
    "dtype_of",
    "encode_frame",
    "frame_bytes",
    "is_valid_id",
    "iter_frames",
    "normalize_id",
    "numpy_dtype",
    "read_rows",
    "write_rows",
]
