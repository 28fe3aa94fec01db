"""Rows that wait on disk while the store is away. Used by the exporter thread alone.

Files of whole frames, oldest first, in a folder of this process's own and in those of dead
processes that it adopted. No method raises: a disk that fails costs the spool, not the
recorder, and is tried again later.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from routereplay.patches.vllm.guard import QuietLogger
from routereplay.patches.vllm.ledger import Ledger
from routereplay.patches.vllm.parcel import Parcel
from routereplay.patches.vllm.settings import GIB, Settings
from routereplay.patches.vllm.spool_file import (
    Contents,
    SpoolFile,
    file_name,
    read_file,
    write_file,
)
from routereplay.patches.vllm.spool_folder import BAD, Folder, folders, store_mark

logger = logging.getLogger(__name__)

_REST_S = 5.0
"""How long a disk that failed or is full is left alone."""
_FLOOR_BYTES = GIB
_FLOOR_PART = 0.05
"""The file system keeps 1 GiB or 5 % free, whichever is less."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Spool:
    """The files that this process holds.

    Args:
        root: `ROUTEREPLAY_SPOOL_DIR`, made or checked by `prepare_root`.
        settings: how much it may hold, and for which store it is.
        ledger: told of rows that are adopted.
    """

    def __init__(self, root: Path, settings: Settings, ledger: Ledger) -> None:
        self._root = root
        self._max_bytes = settings.spool_bytes
        self._mark = store_mark(settings.store_name)
        self._ledger = ledger
        self._quiet = QuietLogger(logger)
        self._own: Folder | None = None
        self._adopted: dict[Path, Folder] = {}
        self._files: deque[SpoolFile] = deque()
        self._held_bytes = 0
        self._written = 0
        self._not_before = 0.0
        self.full = False
        """There was no room for the last file."""

    @property
    def oldest(self) -> SpoolFile | None:
        """The file to send next."""
        return self._files[0] if self._files else None

    def is_usable(self, now: float) -> bool:
        """Whether a write is worth trying; `now` in monotonic seconds."""
        return now >= self._not_before

    def write(self, parcels: Sequence[Parcel], now: float) -> bool:
        """Write frames to one file; return whether they are on disk."""
        rows = sum(parcel.rows for parcel in parcels)
        nbytes = sum(parcel.nbytes for parcel in parcels)
        size = sum(parcel.wire_nbytes for parcel in parcels)
        try:
            self._check_room(size)
            if self._own is None:
                self._own = Folder.create(self._root, self._mark)
            path = self._own.path / file_name(self._written, rows, nbytes)
            write_file(path, (part for parcel in parcels for part in parcel.buffers))
        except OSError as error:
            self._failed(error, now)
            return False
        self._written += 1
        self.full = False
        self._files.append(SpoolFile(path, rows, nbytes, size, time.time(), adopted=False))
        self._held_bytes += size
        return True

    def read(self, file: SpoolFile) -> Contents:
        """Read and verify a file; one that cannot be read has no contents."""
        try:
            return read_file(file.path)
        except OSError as error:
            self._quiet.warning("spooled routes cannot be read: %s", error)
            return Contents([], False, [])

    def remove(self, file: SpoolFile) -> None:
        """Forget a file whose frames are all settled."""
        with contextlib.suppress(OSError):
            file.path.unlink()
        self._forget(file)

    def quarantine(self, file: SpoolFile) -> None:
        """Put a damaged file aside."""
        self._put_aside(file.path)
        self._forget(file)

    def adopt(self) -> None:
        """Take over what dead processes left for this store."""
        try:
            for path in folders(self._root, self._mark):
                if path not in self._adopted and (self._own is None or path != self._own.path):
                    folder = Folder.claim(path)
                    if folder is not None:
                        self._adopted[path] = folder
                        self._take_over(folder)
        except OSError as error:
            self._quiet.warning("the spool %s cannot be looked through: %s", self._root, error)

    def finished(self) -> list[Path]:
        """Return adopted folders of which nothing is left, and remove them."""
        waiting = {file.path.parent for file in self._files}
        done = [path for path in self._adopted if path not in waiting]
        for path in done:
            self._adopted.pop(path).remove()
        return done

    def close(self) -> None:
        """Give up the locks; what is left is sent by the next process."""
        self.finished()
        for folder in self._adopted.values():
            folder.leave()
        self._adopted.clear()
        if self._own is not None:
            left = any(file.path.parent == self._own.path for file in self._files)
            (self._own.leave if left else self._own.remove)()
            self._own = None

    def abandon(self) -> None:
        """In a forked child: everything here is its parent's."""
        for folder in [*self._adopted.values(), *([self._own] if self._own else [])]:
            with contextlib.suppress(OSError):
                folder.leave()

    def _take_over(self, folder: Folder) -> None:
        for path in folder.entries():
            if path.suffix == ".tmp":
                path.unlink()  # Its process died while it wrote it.
                continue
            file = SpoolFile.at(path, adopted=True)
            if file is None:
                self._put_aside(path)
                continue
            self._files.append(file)
            self._held_bytes += file.size
            self._ledger.adopt(file.rows, file.nbytes)
        logger.info("route recorder: took over %s of a process that ended", folder.path.name)

    def _check_room(self, size: int) -> None:
        about = os.statvfs(self._root)
        free, total = about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize
        floor = min(_FLOOR_BYTES, int(total * _FLOOR_PART))
        if self._held_bytes + size > self._max_bytes or free - size < floor:
            raise OSError(
                errno.ENOSPC,
                f"no room: {self._held_bytes} of {self._max_bytes} bytes used, {free} bytes free",
            )

    def _failed(self, error: OSError, now: float) -> None:
        self.full = error.errno in _NO_ROOM
        self._not_before = now + _REST_S
        if self._own is not None and not self._own.path.exists():
            self._own.leave()
            self._own = None
        self._ledger.happened("spool_full" if self.full else "spool_error")
        self._quiet.warning(
            "routes cannot be spooled to %s, they wait in memory: %s", self._root, error
        )

    def _put_aside(self, path: Path) -> None:
        """Move a file out of the way; of a link the link itself."""
        bad = self._root / BAD
        try:
            bad.mkdir(mode=0o700, exist_ok=True)
            path.rename(bad / f"{path.parent.name}.{path.name}")
        except OSError as error:
            self._quiet.warning("%s is damaged and cannot be put aside: %s", path, error)
        else:
            self._quiet.warning("%s is damaged or not ours, see %s", path.name, bad)
        self._ledger.happened("spool_quarantined")

    def _forget(self, file: SpoolFile) -> None:
        with contextlib.suppress(ValueError):
            self._files.remove(file)
            self._held_bytes -= file.size
            if self.full:
                self.full, self._not_before = False, 0.0
