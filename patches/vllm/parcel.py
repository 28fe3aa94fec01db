"""Encoded frames on their way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from routereplay.patches.vllm.origin import Origin
from routereplay.patches.vllm.spool_file import SpoolFile
from routereplay.wire.digest import Buffer
from routereplay.wire.frame import Frame, decode_frame, encode_frame
from routereplay.wire.records import Chunk, Routes, Seal

Kind: TypeAlias = Literal["chunk", "seal", "drop"]


@dataclass(eq=False, slots=True)
class Parcel:
    """One encoded frame and what it carries.

    Its bytes never change, however often it is sent, but for a seal without its parent.
    """

    origin: Origin
    kind: Kind
    buffers: Sequence[Buffer]
    created_at: float
    """Monotonic seconds."""
    rows: int = 0
    nbytes: int = 0
    """Bytes of the rows as they were captured, however they are written."""
    dead: bool = False
    """Its record was lost before it was sent."""
    index: int = 0
    """Position in the file that it was read from."""
    damaged: int = 0
    """How often the store found it damaged."""
    wire_nbytes: int = field(init=False)
    """Bytes of the frame."""

    def __post_init__(self) -> None:
        self.wire_nbytes = sum(memoryview(part).nbytes for part in self.buffers)

    def orphan(self) -> bool:
        """Let a seal be taken without its parent; return False if it is no such seal, or is."""
        header, payload = decode_frame(b"".join(self.buffers))
        if not isinstance(header, Seal) or header.orphan or header.manifest.parent is None:
            return False
        self.buffers = encode_frame(msgspec.structs.replace(header, orphan=True), [payload])
        self.wire_nbytes = sum(memoryview(part).nbytes for part in self.buffers)
        return True


@dataclass(eq=False, slots=True)
class Batch:
    """Frames whose rows count as in flight."""

    parcels: list[Parcel]
    file: SpoolFile | None = None
    """Where they were read from."""
    sent: int = 0
    """How many of them are in the POST that is under way."""


def note_of(origin: Origin, reason: str, now: float) -> Parcel:
    """Return the note that a record is lost."""
    return Parcel(origin, "drop", encode_frame(origin.drop(reason)), now)


def parcel_of(frame: Frame, encoded: Buffer, index: int, now: float) -> Parcel:
    """Return the parcel of a frame that was read from disk."""
    header = frame.header
    if isinstance(header, Routes):
        msg = "a routes frame is an answer of the store; it is never spooled"
        raise TypeError(msg)
    origin = Origin.of_header(header)
    if isinstance(header, Chunk):
        nbytes = header.ids_nbytes
        return Parcel(origin, "chunk", [encoded], now, header.rows, nbytes, index=index)
    kind: Kind = "seal" if isinstance(header, Seal) else "drop"
    return Parcel(origin, kind, [encoded], now, index=index)
