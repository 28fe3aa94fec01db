"""Folders of the spool: one for each process, held by a lock for as long as it lives.

A folder whose lock is free belongs to a process that is dead, whatever has become of its
pid, and whoever takes the lock sends what is in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from routereplay.wire.digest import digest

BAD = "bad"
"""Where damaged files go, below the root."""
_LOCK = "lock"


def prepare_root(root: Path) -> None:
    """Make the root of a spool, or check the one that is there.

    Raises:
        ValueError: routes are derived from prompts, and others could read or place files there.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = root.lstat()
    except OSError as error:
        msg = f"ROUTEREPLAY_SPOOL_DIR={str(root)!r} cannot be used: {error.strerror}"
        raise ValueError(msg) from error
    if not stat.S_ISDIR(about.st_mode):
        msg = f"ROUTEREPLAY_SPOOL_DIR={str(root)!r} is a link or a file; expected a folder itself"
        raise ValueError(msg)
    if about.st_uid != os.geteuid() or about.st_mode & 0o077:
        msg = (
            f"ROUTEREPLAY_SPOOL_DIR={str(root)!r} has mode {stat.S_IMODE(about.st_mode):04o} and "
            f"owner {about.st_uid}; expected 0700 and this user, {os.geteuid()}: others could read "
            "what prompts were like. chmod 700 it, or name a folder that does not exist yet"
        )
        raise ValueError(msg)


def store_mark(store_name: str) -> str:
    """Return the part of a folder's name that says for which store its rows are."""
    return digest(store_name.encode())[:4].hex()


class Folder:
    """A folder whose lock this process holds."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, root: Path, mark: str) -> Folder:
        """Make a folder of this process's own. Raises `OSError`."""
        while True:
            name = f"{mark}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
            path = root / name
            path.mkdir(mode=0o700)
            # Between the two lines another process may have taken it for a dead one's.
            if (folder := cls.claim(path)) is not None:
                return folder

    @classmethod
    def claim(cls, path: Path) -> Folder | None:
        """Take the lock of a folder, or return None if a live process holds it."""
        try:
            lock = os.open(path / _LOCK, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), (path / _LOCK).lstat()):
                return cls(path, lock)
        except OSError:
            pass  # Held by a live process, or removed with its folder just now.
        os.close(lock)
        return None

    def entries(self) -> list[Path]:
        """Return everything in it but the lock, in the order of names."""
        return sorted(path for path in self.path.iterdir() if path.name != _LOCK)

    def remove(self) -> None:
        """Remove an empty folder and give up its lock."""
        with contextlib.suppress(OSError):
            (self.path / _LOCK).unlink()
            self.path.rmdir()
        os.close(self._lock)

    def leave(self) -> None:
        """Give up the lock: whoever comes next adopts what is here.

        In a forked child it closes the child's descriptor only, and its parent keeps the lock.
        """
        os.close(self._lock)


def folders(root: Path, mark: str | None = None) -> Iterator[Path]:
    """Return the folders below `root` that hold rows for one store, or for any."""
    for path in sorted(root.iterdir()):
        name = path.name
        if name != BAD and (mark is None or name.startswith(f"{mark}-")):
            about = path.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid():
                yield path
