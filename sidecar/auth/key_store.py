"""The key file on disk: read, watched, written."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path

import msgspec

from routereplay.sidecar.auth.keys import KeyFile, KeyRing, parse_key_file
from routereplay.sidecar.errors import KeyFileInvalid

logger = logging.getLogger(__name__)


class WatchedKeys:
    """The keys of a file, as it is now or as it last was in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self.ring = KeyRing(())

    def load(self) -> None:
        """Read the file, or raise `KeyFileInvalid`."""
        self._seen = _mark(self._path)
        self.ring = KeyRing(read_key_file(self._path).keys)

    def refresh(self) -> bool:
        """Read the file again if it has changed; return whether all is in order.

        A file that is broken or gone changes nothing: a slip of the editor must not lock
        every recorder out. It is said in the log each time, until it is mended.
        """
        try:
            if _mark(self._path) != self._seen:
                self.load()
                logger.info("%d API keys read from %s", len(self.ring), self._path)
        except KeyFileInvalid as error:
            self._seen = None
            logger.error("the API keys stay as they were: %s", error.message)
            return False
        return True


def read_key_file(path: Path) -> KeyFile:
    """Return what the file at `path` holds.

    Raises:
        KeyFileInvalid: it cannot be read, is no key file, or anybody may write to it.
    """
    try:
        if path.stat().st_mode & stat.S_IWOTH:
            msg = f"anybody may write to {path}, and so give keys away: chmod o-w {path}"
            raise KeyFileInvalid(msg)
        text = path.read_bytes()
    except OSError as error:
        msg = f"the key file {path} cannot be read: {error.strerror}"
        raise KeyFileInvalid(msg) from error
    return parse_key_file(text, str(path))


def write_key_file(path: Path, content: KeyFile) -> None:
    """Replace the file in one step; a new one is for its owner only.

    Raises:
        KeyFileInvalid: it cannot be written.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(number, "wb") as file:
            os.fchmod(number, mode)
            file.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
            file.flush()
            os.fsync(number)
        Path(name).replace(path)
    except OSError as error:
        msg = f"the key file {path} cannot be written: {error.strerror}"
        raise KeyFileInvalid(msg) from error


def _mark(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        msg = f"the key file {path} cannot be read: {error.strerror}"
        raise KeyFileInvalid(msg) from error
    return found.st_mtime_ns, found.st_size, found.st_ino
