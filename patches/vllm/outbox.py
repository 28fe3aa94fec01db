"""Records in progress, and the frames of theirs that wait in memory.

Used by the exporter thread alone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import numpy as np

from routereplay.patches.vllm.guard import QuietLogger
from routereplay.patches.vllm.ledger import Ledger
from routereplay.patches.vllm.origin import Origin
from routereplay.patches.vllm.parcel import Parcel, note_of
from routereplay.patches.vllm.record import Ending, RecordInfo
from routereplay.patches.vllm.settings import Settings
from routereplay.patches.vllm.upload import Upload
from routereplay.wire.errors import InvalidRoutes, RecordConflict

logger = logging.getLogger(__name__)

_MAX_DROP_NOTES = 65_536
"""Notes of lost records that wait for a store that is away; older ones are forgotten."""
_MAX_LOST = 65_536
"""Lost records whose frames may still be on disk."""


class Outbox:
    """Frames rows and queues the frames in order; knows which records are lost.

    Args:
        settings: sizes and times.
        ledger: where every move of rows is counted.
        breathe: called between two records, to let the event loop have the interpreter.
        on_lost: called with the trajectory of a record that is lost.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        breathe: Callable[[], None] = lambda: None,
        on_lost: Callable[[str], None] = lambda trajectory: None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._breathe = breathe
        self._on_lost = on_lost
        self._quiet = QuietLogger(logger)
        self._uploads: dict[str, Upload] = {}
        """Records without a seal."""
        self._unsent: dict[str, Upload] = {}
        """Records of which a frame waits in memory, or a chunk on disk for its seal."""
        self._lost: dict[str, str] = {}
        self.waiting: deque[Parcel] = deque()
        self.waiting_bytes = 0
        """Of the frames in `waiting`."""
        self.notes: deque[Parcel] = deque(maxlen=_MAX_DROP_NOTES)
        """Notes of lost records."""

    @property
    def busy(self) -> bool:
        """Whether anything waits to be framed or sent."""
        return bool(
            self.waiting or self.notes or any(upload.pending for upload in self._uploads.values())
        )

    @property
    def active(self) -> bool:
        """Whether anything waits or may come: a record is open."""
        return bool(self._uploads) or self.busy

    def open(self, info: RecordInfo, source: deque[np.ndarray]) -> None:
        """A record begins; its rows will come into `source`."""
        self._uploads[info.upload_id] = Upload(info, source, self._settings.codec)

    def end(self, info: RecordInfo, ending: Ending, now: float) -> None:
        """Seal a record, unless it is lost."""
        upload = self._uploads[info.upload_id]
        if info.parent is not None and info.parent.upload_id in self._uploads:
            # The first choice still runs: the store must hear of it before this one's seal.
            self._frame(self._uploads[info.parent.upload_id], now)
        self._frame(upload, now)
        del self._uploads[info.upload_id]
        if not upload.lost:
            self._enqueue(upload, upload.seal(ending, now))
            if upload.invalid:
                self._ledger.suspect(upload.invalid)
                self._quiet.warning(
                    "the routes of %s cannot be real (%s): the record is sealed as invalid",
                    *(info.client.request_id, ", ".join(upload.invalid)),
                )

    def lose(self, info: RecordInfo, reason: str, now: float) -> None:
        """Give a record of this process up; nothing more comes for it."""
        upload = self._uploads[info.upload_id]
        self.give_up(upload.origin, reason, now)
        del self._uploads[info.upload_id]

    def lose_open(self, reason: str, now: float) -> None:
        """Give up every record that has no seal yet."""
        for upload in list(self._uploads.values()):
            self.give_up(upload.origin, reason, now)
        self._uploads.clear()

    def flush(self, now: float) -> None:
        """Frame the rows of records that have many, or have had them long enough."""
        nbytes, age_s = self._settings.flush_bytes, self._settings.flush_age_s
        for upload in self._uploads.values():
            if upload.is_due(nbytes, age_s, now):
                self._frame(upload, now)
                self._breathe()

    def next_parcel(self, nbytes: int) -> Parcel | None:
        """Take the first frame that waits, unless it is longer than `nbytes` or must wait."""
        while self.waiting:
            parcel = self.waiting[0]
            upload = self._unsent.get(parcel.origin.upload_id)
            held_back = parcel.kind == "seal" and upload is not None and upload.spooled
            if not parcel.dead and (held_back or parcel.wire_nbytes > nbytes):
                return None
            self.take_first()
            if not parcel.dead:
                return parcel
        return None

    def take_first(self) -> Parcel:
        """Take the first frame, whatever it is."""
        parcel = self.waiting.popleft()
        self.waiting_bytes -= parcel.wire_nbytes
        upload = self._unsent.get(parcel.origin.upload_id)
        if upload is not None and upload.waiting and upload.waiting[0] is parcel:
            upload.waiting.popleft()
            self._forget_if_done(upload)
        return parcel

    def put_back(self, parcels: list[Parcel]) -> None:
        """Let frames be the first again."""
        for parcel in reversed(parcels):
            self.waiting.appendleft(parcel)
            self.waiting_bytes += parcel.wire_nbytes
            upload = self._uploads.get(parcel.origin.upload_id)
            if upload is not None:
                upload.waiting.appendleft(parcel)
                self._unsent[upload.origin.upload_id] = upload

    def went_to_disk(self, parcel: Parcel) -> None:
        """Note a frame that is on disk now."""
        upload_id = parcel.origin.upload_id
        upload = self._unsent.get(upload_id) or self._uploads.get(upload_id)
        if upload is None:
            return
        if parcel.kind == "chunk":
            upload.spooled += 1
            self._unsent[upload_id] = upload
        else:
            upload.spooled = 0  # Its seal is behind its chunks on disk, and nothing overtakes.
            self._forget_if_done(upload)

    def left_disk(self, parcel: Parcel) -> None:
        """Note a frame from disk that is settled."""
        upload = self._unsent.get(parcel.origin.upload_id)
        if upload is not None and upload.spooled and parcel.kind == "chunk":
            upload.spooled -= 1
            self._forget_if_done(upload)

    def why_lost(self, origin: Origin) -> str | None:
        """Return why a record is lost, or None."""
        return self._lost.get(origin.upload_id)

    def give_up(self, origin: Origin, reason: str, now: float) -> None:
        """A record is lost: drop what waits of it in memory, and tell the store."""
        if origin.upload_id in self._lost:
            return
        self._lost[origin.upload_id] = reason
        if len(self._lost) > _MAX_LOST:
            del self._lost[next(iter(self._lost))]
        upload = self._uploads.get(origin.upload_id) or self._unsent.get(origin.upload_id)
        if upload is not None:
            self._drop_all(upload, reason)
            origin = upload.origin
        self.forget_prefix(origin)
        self._ledger.record_ended(f"dropped:{reason}")
        # After a conflict another record with this id is sealed: nothing is missing there.
        if reason != f"rejected:{RecordConflict.code}":
            self.notes.append(note_of(origin, reason, now))

    def forget_prefix(self, origin: Origin) -> None:
        """Let the next turn of a record's trajectory have all its rows."""
        if origin.trajectory_id is not None:
            self._on_lost(origin.trajectory_id)

    def _drop_all(self, upload: Upload, reason: str) -> None:
        upload.lost = reason
        arrays = upload.take()
        self._ledger.collected(len(arrays))
        self._drop_queued(upload, sum(map(len, arrays)), reason)
        while upload.waiting:
            parcel = upload.waiting.popleft()
            parcel.dead = True
            self.waiting_bytes -= parcel.wire_nbytes
            parcel.buffers, parcel.wire_nbytes = [], 0
            self._ledger.drop_queued(parcel.rows, parcel.nbytes, reason)
        upload.spooled = 0
        self._forget_if_done(upload)

    def _frame(self, upload: Upload, now: float) -> None:
        arrays = upload.take()
        rows = sum(map(len, arrays))
        if not rows:
            return
        self._ledger.collected(len(arrays))
        if upload.lost:
            self._drop_queued(upload, rows, upload.lost)
            return
        try:
            parcels = upload.chunks(arrays, self._settings.chunk_bytes, now)
        except InvalidRoutes as error:
            self._quiet.warning("routes are not recorded: %s", error)
            self._drop_queued(upload, rows, error.code)
            self.give_up(upload.origin, error.code, now)
            return
        for parcel in parcels:
            self._enqueue(upload, parcel)

    def _drop_queued(self, upload: Upload, rows: int, reason: str) -> None:
        self._ledger.drop_queued(rows, rows * upload.info.model.row_nbytes, reason)

    def _enqueue(self, upload: Upload, parcel: Parcel) -> None:
        self.waiting.append(parcel)
        self.waiting_bytes += parcel.wire_nbytes
        upload.waiting.append(parcel)
        self._unsent[upload.origin.upload_id] = upload

    def _forget_if_done(self, upload: Upload) -> None:
        if not (upload.waiting or upload.spooled):
            self._unsent.pop(upload.origin.upload_id, None)
