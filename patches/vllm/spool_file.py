"""One file of the spool: whole frames, one POST's worth, written once and renamed into place.

    0000000012.4096.1048576.rrs     position, rows and their bytes

The name tells what an adopter needs before it reads anything; whatever is not exactly
that, or cannot be verified, is not sent.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from routereplay.wire.digest import Buffer, digest
from routereplay.wire.errors import WireError
from routereplay.wire.frame import Frame, decode_frame, read_prefix
from routereplay.wire.records import Chunk, Routes, Seal

_NAME = re.compile(r"(\d{10})\.(\d{1,15})\.(\d{1,18})\.rrs")


@dataclass(eq=False, slots=True)
class SpoolFile:
    """A file that waits for the store, and how much of it was settled."""

    path: Path
    rows: int
    nbytes: int
    """Bytes of the rows."""
    size: int
    """Bytes on disk."""
    modified_at: float
    """Unix seconds."""
    adopted: bool
    """A process that is dead wrote it."""
    settled: set[int] = field(default_factory=set)
    """Positions of the frames that the store took or refused."""

    @classmethod
    def at(cls, path: Path, *, adopted: bool) -> SpoolFile | None:
        """Return the file at `path`, or None if it is not one of ours."""
        match = _NAME.fullmatch(path.name)
        about = path.lstat()
        if match is None or not _is_ours(about):
            return None
        _, rows, nbytes = map(int, match.groups())
        return cls(path, rows, nbytes, about.st_size, about.st_mtime, adopted)


class Contents(NamedTuple):
    """What is left of a file."""

    frames: list[tuple[int, Frame, memoryview]]
    """Whole frames: position, header and payload, and the frame as it is sent."""
    whole: bool
    """Every byte of the file belongs to one of them."""
    failed: list[Frame]
    """Frames whose header can be read and whose payload is not what was written."""


def file_name(position: int, rows: int, nbytes: int) -> str:
    """Return the name of a file."""
    return f"{position:010d}.{rows}.{nbytes}.rrs"


def write_file(path: Path, buffers: Iterable[Buffer]) -> None:
    """Write a file that appears at `path` whole or not at all; readable by its owner only.

    It survives the process. It is not forced onto the disk: what a loss of power leaves of
    it is found by its digests.
    """
    part = path.with_suffix(".tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        with open(os.open(part, flags, 0o600), "wb") as file:
            for buffer in buffers:
                file.write(buffer)
        part.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def read_file(path: Path) -> Contents:
    """Read and verify a file; a link is not followed. Raises `OSError`."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if not _is_ours(os.fstat(file.fileno())):
            msg = f"{path} is no regular file of this user"
            raise OSError(msg)
        view = memoryview(file.read())
    frames: list[tuple[int, Frame, memoryview]] = []
    failed: list[Frame] = []
    offset = position = 0
    while offset < len(view):
        try:
            encoded = view[offset : offset + read_prefix(view[offset:]).total]
            frame = decode_frame(encoded)
        except WireError:
            # Where the next frame would begin is not known any more.
            return Contents(frames, False, failed)
        if is_intact(frame):
            frames.append((position, frame, encoded))
        else:
            failed.append(frame)
        offset += len(encoded)
        position += 1
    return Contents(frames, position > 0 and not failed, failed)


def is_intact(frame: Frame) -> bool:
    """Whether a frame's payload is what its header says."""
    header, payload = frame
    if isinstance(header, Chunk):
        return digest(payload) == header.digest
    if isinstance(header, Seal):
        return digest(payload) == header.manifest.token_digest
    return not isinstance(header, Routes) and not payload


def _is_ours(about: os.stat_result) -> bool:
    return stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid()
