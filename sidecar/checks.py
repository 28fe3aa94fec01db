"""What an ingested frame must satisfy before a byte of it is stored."""

from __future__ import annotations

from collections.abc import Iterator

from routereplay.wire.codec import Dtype, id_bits, is_shorter, read_rows
from routereplay.wire.digest import Buffer, digest
from routereplay.wire.errors import (
    InvalidRoutes,
    MalformedFrame,
    RouteReplayError,
    UploadIncomplete,
)
from routereplay.wire.frame import Frame, iter_frames
from routereplay.wire.ids import check_id
from routereplay.wire.records import Chunk, Drop, ParentRef, RecordManifest, Routes, Seal
from routereplay.wire.routes import check_rows

MAX_LAYERS = 1024
MAX_TOPK = 256
MAX_EXPERTS = 65536
MAX_ROW_BYTES = 256 * 1024
MAX_TOKENS = 1 << 26
MAX_CHUNKS = 1 << 16
MAX_CHOICES = 1 << 16
MAX_ALIASES = 8
MAX_TEXT = 1000

_KEEPS_MORE: dict[Dtype, tuple[Dtype, ...]] = {
    "bitpack": ("uint8", "uint16"),
    "sorted": ("uint8", "uint16", "bitpack"),
}


def frames_of(body: Buffer) -> Iterator[Frame]:
    """Yield the frames of an ingest body; `fault` says what is wrong with one.

    Raises:
        UnsupportedWireVersion, MalformedFrame: the body cannot be told apart into frames
            of an upload, and nothing of it may be stored.
    """
    frame = None
    for frame in iter_frames(body):
        if isinstance(frame.header, Routes):
            msg = "a routes frame is an answer of the store and cannot be ingested"
            raise MalformedFrame(msg)
        yield frame
    if frame is None:
        msg = "an ingest body holds at least one frame; this one is empty"
        raise MalformedFrame(msg)


def fault(frame: Frame) -> RouteReplayError | None:
    """Return what is wrong with one chunk, seal or drop, or None."""
    try:
        match frame.header:
            case Chunk() as chunk:
                check_chunk(chunk, frame.payload)
            case Seal() as seal:
                check_seal(seal, frame.payload)
            case Drop() as drop:
                check_drop(drop, frame.payload)
    except RouteReplayError as error:
        return error
    return None


def check_chunk(chunk: Chunk, payload: memoryview) -> None:
    """Raise unless the header is sane and the payload is the rows that it describes."""
    where = f"chunk {chunk.seq} of {chunk.request_id[:80]!r}"
    _check_ids(chunk.request_id, chunk.trajectory_id, chunk.aliases)
    _check_range(where, "choice", chunk.choice, 0, MAX_CHOICES - 1)
    _check_range(where, "seq", chunk.seq, 0, MAX_CHUNKS - 1)
    _check_range(where, "first_row", chunk.first_row, 0, MAX_TOKENS)
    _check_range(where, "rows", chunk.rows, 1, MAX_TOKENS)
    row_nbytes = _check_geometry(where, chunk)
    if payload.nbytes != chunk.rows * row_nbytes:
        msg = (
            f"{where}: {payload.nbytes} payload bytes; {chunk.rows} rows of {chunk.num_layers} "
            f"layers x {chunk.topk} {chunk.dtype} are {chunk.rows * row_nbytes}"
        )
        raise MalformedFrame(msg)
    if digest(payload) != chunk.digest:
        # Not `corrupt`: that is what the store says of its own bytes, and asks for a retry.
        msg = f"{where}: the payload does not match its digest; it was damaged on its way"
        raise MalformedFrame(msg)
    if chunk.dtype == "bitpack" and chunk.num_experts == 1 << id_bits(chunk.num_experts):
        # Whatever the bits are, they are an expert's.
        return
    rows_TLK = read_rows(payload, chunk.dtype, chunk.num_layers, chunk.topk, chunk.num_experts)
    check_rows(rows_TLK, chunk.num_experts, where)


def check_seal(seal: Seal, payload: memoryview) -> None:
    """Raise unless the manifest adds up and the payload is its token ids."""
    manifest = seal.manifest
    where = f"seal of {manifest.request_id[:80]!r}"
    _check_ids(manifest.request_id, manifest.trajectory_id, manifest.aliases)
    _check_range(where, "choice", manifest.choice, 0, MAX_CHOICES - 1)
    _check_range(where, "chunks", len(manifest.chunks), 0, MAX_CHUNKS)
    for name in ("prompt_len", "completion_len", "row_start", "rows"):
        _check_range(where, name, getattr(manifest, name), 0, MAX_TOKENS)
    _check_range(where, "tokens", manifest.num_tokens, 1, MAX_TOKENS)
    _check_geometry(where, manifest)
    _check_sums(where, manifest)
    for span in manifest.policy_versions:
        if not 0 <= span.start <= span.stop <= manifest.num_tokens:
            msg = f"{where}: policy span {span.start}:{span.stop} of {manifest.num_tokens} tokens"
            raise MalformedFrame(msg)
    if payload.nbytes != 4 * manifest.num_tokens:
        msg = (
            f"{where}: {payload.nbytes} bytes of token ids; {manifest.num_tokens} int32 "
            f"are {4 * manifest.num_tokens}"
        )
        raise MalformedFrame(msg)
    if digest(payload) != manifest.token_digest:
        msg = f"{where}: the token ids do not match their digest; they were damaged on their way"
        raise MalformedFrame(msg)
    if manifest.parent is not None:
        _check_parent(where, manifest, manifest.parent, payload)


def _check_parent(
    where: str, manifest: RecordManifest, parent: ParentRef, payload: memoryview
) -> None:
    check_id(parent.request_id, "parent's request_id")
    _check_range(where, "parent's choice", parent.choice, 0, MAX_CHOICES - 1)
    _check_range(where, "row_start of a delta", manifest.row_start, 1, manifest.num_tokens - 1)
    if (parent.request_id, parent.choice) == (manifest.request_id, manifest.choice):
        msg = f"{where}: it names itself as its parent"
        raise MalformedFrame(msg)
    if digest(payload[: 4 * manifest.row_start]) != parent.prefix_digest:
        msg = f"{where}: its first {manifest.row_start} token ids do not match their digest"
        raise MalformedFrame(msg)


def check_drop(drop: Drop, payload: memoryview) -> None:
    """Raise unless the note is one that the index can hold."""
    where = f"drop of {drop.request_id[:80]!r}"
    _check_ids(drop.request_id, drop.trajectory_id, drop.aliases)
    _check_range(where, "choice", drop.choice, 0, MAX_CHOICES - 1)
    _check_range(where, "rows", drop.rows, 0, MAX_TOKENS)
    _check_range(where, "reason length", len(drop.reason), 1, MAX_TEXT)
    if payload.nbytes:
        msg = f"{where}: {payload.nbytes} payload bytes; a drop has none"
        raise MalformedFrame(msg)


def _check_ids(request_id: str, trajectory_id: str | None, aliases: tuple[str, ...]) -> None:
    check_id(request_id, "request_id")
    if trajectory_id is not None:
        check_id(trajectory_id, "trajectory_id")
    if len(aliases) > MAX_ALIASES:
        msg = f"{request_id!r} has {len(aliases)} aliases; at most {MAX_ALIASES} are kept"
        raise MalformedFrame(msg)
    for alias in aliases:
        check_id(alias, "alias")


def _check_geometry(where: str, shape: Chunk | RecordManifest) -> int:
    """Return the bytes of one row, or raise."""
    _check_range(where, "num_layers", shape.num_layers, 1, MAX_LAYERS)
    _check_range(where, "topk", shape.topk, 1, MAX_TOPK)
    _check_range(where, "num_experts", shape.num_experts, 1, MAX_EXPERTS)
    if shape.dtype == "uint8" and shape.num_experts > 256:
        msg = f"{where}: uint8 cannot hold the ids of {shape.num_experts} experts; send uint16"
        raise InvalidRoutes(msg)
    if not is_shorter(shape.dtype, shape.topk, shape.num_experts):
        msg = (
            f"{where}: {shape.topk} ids of {shape.num_experts} experts are no shorter as "
            f"{shape.dtype}; send {' or '.join(_KEEPS_MORE[shape.dtype])}"
        )
        raise InvalidRoutes(msg)
    _check_range(where, "bytes of a row", shape.row_nbytes, 1, MAX_ROW_BYTES)
    return shape.row_nbytes


def _check_sums(where: str, manifest: RecordManifest) -> None:
    for seq, chunk in enumerate(manifest.chunks):
        if chunk.rows < 1 or chunk.nbytes != chunk.rows * manifest.row_nbytes:
            msg = (
                f"{where}: chunk {seq} has {chunk.rows} rows in {chunk.nbytes} bytes; "
                f"a row is {manifest.row_nbytes}"
            )
            raise MalformedFrame(msg)
    rows = sum(chunk.rows for chunk in manifest.chunks)
    if rows != manifest.rows:
        msg = f"{where}: its chunks hold {rows} rows, the manifest says {manifest.rows}"
        raise UploadIncomplete(msg, rows=rows, expected=manifest.rows)
    # The last sampled token is never fed to the model, so it never has a row.
    fed = max(manifest.num_tokens - 1 - manifest.row_start, 0)
    if manifest.rows > fed:
        msg = (
            f"{where}: {manifest.rows} rows from token {manifest.row_start} on, where only "
            f"{fed} tokens were fed to the model"
        )
        raise InvalidRoutes(msg, rows=manifest.rows, fed=fed)


def _check_range(where: str, name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        msg = f"{where}: {name} is {value}; expected {low} to {high}"
        raise MalformedFrame(msg)
