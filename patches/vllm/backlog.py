"""What waits on disk, as the delivery sees it: frames go in, batches come out, all counted.

Used by the exporter thread alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from routereplay.patches.vllm.ledger import Ledger
from routereplay.patches.vllm.origin import Origin
from routereplay.patches.vllm.outbox import Outbox
from routereplay.patches.vllm.parcel import Batch, Parcel, parcel_of
from routereplay.patches.vllm.spool import Spool
from routereplay.patches.vllm.spool_file import Contents, SpoolFile

_MAX_FRAMES = 1024
"""Frames in one file."""


@dataclass(slots=True)
class _Orphan:
    """A record of a dead process that has no seal yet."""

    origin: Origin
    folder: Path


class Backlog:
    """Moves frames between the outbox and the spool, and counts every move.

    Args:
        spool: the files.
        ledger: where every move of rows is counted.
        outbox: frames in memory, and which records are lost.
        file_bytes: about how long a file is; it is sent as one POST.
    """

    def __init__(self, spool: Spool, ledger: Ledger, outbox: Outbox, file_bytes: int) -> None:
        self._spool = spool
        self._ledger = ledger
        self._outbox = outbox
        self._file_bytes = file_bytes
        self._orphans: dict[str, _Orphan] = {}

    def __bool__(self) -> bool:
        return self._spool.oldest is not None

    @property
    def age_s(self) -> float:
        """Age of the oldest file, 0 if there is none."""
        oldest = self._spool.oldest
        return max(time.time() - oldest.modified_at, 0.0) if oldest else 0.0

    def adopt(self) -> None:
        """Take over what dead processes left."""
        self._spool.adopt()
        self._report_orphans()

    def write(self, now: float, *, notes: bool = False) -> bool:
        """Move frames from memory to one file; return whether that went well.

        Args:
            now: monotonic seconds.
            notes: the notes of lost records as well.
        """
        outbox = self._outbox
        if not self._spool.is_usable(now):
            return False
        noted = list(islice(outbox.notes, _MAX_FRAMES)) if notes else []
        taken, nbytes = 0, 0
        parcels = list(noted)
        for parcel in outbox.waiting:
            nbytes += parcel.wire_nbytes
            if taken and (nbytes > self._file_bytes or len(parcels) >= _MAX_FRAMES):
                break
            taken += 1
            if not parcel.dead:
                parcels.append(parcel)
        if parcels and not self._spool.write(parcels, now):
            return False
        for _ in noted:
            outbox.notes.popleft()
        for _ in range(taken):
            outbox.take_first()
        for parcel in parcels[len(noted) :]:
            self._ledger.spool_queued(parcel.rows, parcel.nbytes)
            outbox.went_to_disk(parcel)
        return True

    def take_back(self, batch: Batch, now: float) -> bool:
        """Let a batch wait on disk whose POST failed; return whether it does."""
        if batch.file is None:
            if not (self._spool.is_usable(now) and self._spool.write(batch.parcels, now)):
                return False
            for parcel in batch.parcels:
                self._outbox.went_to_disk(parcel)
        for parcel in batch.parcels:
            self._ledger.spool_in_flight(parcel.rows, parcel.nbytes)
        return True

    def next_batch(self, now: float) -> Batch | None:
        """Read the oldest file; its rows count as in flight then."""
        while (file := self._spool.oldest) is not None:
            contents = self._spool.read(file)
            parcels = [
                parcel_of(frame, encoded, index, now)
                for index, frame, encoded in contents.frames
                if index not in file.settled
            ]
            if not (contents.whole and _amount(_all_parcels(contents)) == (file.rows, file.nbytes)):
                self._salvage(file, contents, parcels, now)
                return None
            batch = Batch([], file)
            for parcel in parcels:
                self._note_orphan(file, parcel)
                self._ledger.depart_spooled(parcel.rows, parcel.nbytes)
                lost = self._outbox.why_lost(parcel.origin)
                if lost and parcel.kind != "drop":
                    self._ledger.drop_in_flight(parcel.rows, parcel.nbytes, lost)
                    self.settle(batch, parcel)
                else:
                    batch.parcels.append(parcel)
            if batch.parcels:
                return batch
            self.finish(batch)
        return None

    def settle(self, batch: Batch, parcel: Parcel) -> None:
        """A frame of a batch was taken or is lost."""
        if batch.file is not None:
            batch.file.settled.add(parcel.index)
            self._outbox.left_disk(parcel)

    def finish(self, batch: Batch) -> None:
        """Every frame of a batch is settled."""
        if batch.file is not None:
            self._spool.remove(batch.file)
            self._report_orphans()

    def close(self) -> None:
        """Leave what is on disk to the next process."""
        self._spool.close()

    def _salvage(
        self, file: SpoolFile, contents: Contents, parcels: list[Parcel], now: float
    ) -> None:
        """Put a damaged file aside; what of it is whole waits in memory again."""
        gone = [p for p in _all_parcels(contents) if p.index in file.settled]
        rows, nbytes = _amount(gone)
        rows, nbytes = file.rows - rows, file.nbytes - nbytes
        found_rows, found_nbytes = _amount(parcels)
        if found_rows > rows or found_nbytes > nbytes:
            parcels, found_rows, found_nbytes = [], 0, 0  # Not what was written, nor by us.
        self._ledger.salvage(found_rows, found_nbytes)
        self._ledger.drop_spooled(rows - found_rows, nbytes - found_nbytes, "spool_damaged")
        for parcel in parcels:
            self._note_orphan(file, parcel)
            self._outbox.left_disk(parcel)
        self._outbox.put_back(parcels)
        self._spool.quarantine(file)
        for frame in contents.failed:
            origin = parcel_of(frame, b"", 0, now).origin
            self._orphans.pop(origin.upload_id, None)
            self._outbox.give_up(origin, "spool_damaged", now)
        self._report_orphans()

    def _note_orphan(self, file: SpoolFile, parcel: Parcel) -> None:
        if not file.adopted:
            return
        upload_id = parcel.origin.upload_id
        if parcel.kind == "chunk":
            if (known := self._orphans.get(upload_id)) is not None:
                known.origin.rows += parcel.rows
            else:
                self._orphans[upload_id] = _Orphan(parcel.origin, file.path.parent)
        else:
            self._orphans.pop(upload_id, None)

    def _report_orphans(self) -> None:
        """Of a dead process's records, those without a seal will never have one."""
        done = set(self._spool.finished())
        for orphan in [orphan for orphan in self._orphans.values() if orphan.folder in done]:
            del self._orphans[orphan.origin.upload_id]
            self._outbox.give_up(orphan.origin, "process_died", time.monotonic())


def _all_parcels(contents: Contents) -> list[Parcel]:
    return [parcel_of(frame, b"", index, 0.0) for index, frame, _ in contents.frames]


def _amount(parcels: Sequence[Parcel]) -> tuple[int, int]:
    return sum(parcel.rows for parcel in parcels), sum(parcel.nbytes for parcel in parcels)
