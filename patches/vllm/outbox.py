"""What waits for the store, and what becomes of it. Used by the exporter thread alone."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from routereplay.patches.vllm.guard import QuietLogger
from routereplay.patches.vllm.ledger import Ledger
from routereplay.patches.vllm.record import Ending, RecordInfo
from routereplay.patches.vllm.sender import Answered, Backoff, Outcome, Refused
from routereplay.patches.vllm.settings import Settings
from routereplay.patches.vllm.upload import Parcel, Upload
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import RETRYABLE_CODES, InvalidRoutes, RecordConflict
from routereplay.wire.records import FrameResult

logger = logging.getLogger(__name__)

_MAX_FRAMES = 1024
"""Frames in one POST."""
_MAX_DROP_NOTES = 65_536
"""Notes of lost records that wait for a store that is away; older ones are forgotten."""


class Poster(Protocol):
    """What sends a POST: `Sender`."""

    def post(self, frames: Sequence[Sequence[Buffer]]) -> Outcome:
        """Send whole frames and return what the answer means."""


class Outbox:
    """Uploads in progress, frames that wait, and the one POST that is being tried.

    Args:
        settings: sizes and times.
        ledger: where every move of rows is counted.
        sender: what sends a POST.
        breathe: called between two records, to let the event loop have the interpreter.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        sender: Poster,
        breathe: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._sender = sender
        self._breathe = breathe
        self._backoff = Backoff()
        self._quiet = QuietLogger(logger)
        self._uploads: dict[str, Upload] = {}
        self._waiting: deque[Parcel] = deque()
        self._notes: deque[Parcel] = deque(maxlen=_MAX_DROP_NOTES)
        self._batch: list[Parcel] = []
        self._not_before = 0.0

    @property
    def busy(self) -> bool:
        """Whether anything waits to be framed or sent."""
        return bool(
            self._batch
            or self._waiting
            or self._notes
            or any(upload.pending for upload in self._uploads.values())
        )

    @property
    def active(self) -> bool:
        """Whether anything waits or may come: a record is open."""
        return bool(self._uploads) or self.busy

    def open(self, info: RecordInfo, source: deque[np.ndarray]) -> None:
        """A record begins; its rows will come into `source`."""
        self._uploads[info.upload_id] = Upload(info, source)

    def end(self, info: RecordInfo, ending: Ending, now: float) -> None:
        """Seal a record, unless it is lost."""
        upload = self._uploads.pop(info.upload_id)
        self._frame(upload, now)
        if not upload.lost:
            self._enqueue(upload.seal(ending, now))

    def lose(self, info: RecordInfo, reason: str, now: float) -> None:
        """Give a record up; nothing more comes for it."""
        self._lose(self._uploads.pop(info.upload_id), reason, now)

    def lose_open(self, reason: str, now: float) -> None:
        """Give up every record that has no seal yet."""
        for upload in self._uploads.values():
            self._lose(upload, reason, now)
        self._uploads.clear()

    def flush(self, now: float) -> None:
        """Frame the rows of records that have many, or have had them long enough."""
        nbytes, age_s = self._settings.flush_bytes, self._settings.flush_age_s
        for upload in self._uploads.values():
            if upload.is_due(nbytes, age_s, now):
                self._frame(upload, now)
                self._breathe()

    def hurry(self) -> None:
        """Try again at once: the process is ending."""
        self._not_before = 0.0

    def send(self, now: float) -> bool:
        """Try one POST if one is due; return whether the store took something."""
        if now < self._not_before:
            return False
        if not self._batch:
            self._batch = self._next_batch()
        if not self._batch:
            return False
        outcome = self._sender.post([parcel.buffers for parcel in self._batch])
        if isinstance(outcome, Answered):
            return self._answered(outcome.results, now)
        if isinstance(outcome, Refused):
            self._quiet.warning(
                "the route store refused %d frames (%s): %s",
                *(len(self._batch), outcome.code, outcome.message),
            )
            refused, self._batch = self._batch, []
            for parcel in refused:
                self._reject(parcel, outcome.code, now)
            return True
        self._ledger.store_error()
        self._quiet.warning(
            "the route store at %s did not take routes, trying again: %s",
            *(self._settings.store_name, outcome.why),
        )
        self._batch = [parcel for parcel in self._batch if not self._expired(parcel, now)]
        self._not_before = now + self._backoff.next_delay_s(outcome.retry_after_s)
        return False

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
            self._lose(upload, error.code, now)
            return
        for parcel in parcels:
            self._enqueue(parcel)

    def _drop_queued(self, upload: Upload, rows: int, reason: str) -> None:
        self._ledger.drop_queued(rows, rows * upload.info.model.row_nbytes, reason)

    def _enqueue(self, parcel: Parcel) -> None:
        self._waiting.append(parcel)
        parcel.upload.waiting.append(parcel)

    def _next_batch(self) -> list[Parcel]:
        batch: list[Parcel] = []
        nbytes = 0
        while self._notes and len(batch) < _MAX_FRAMES:
            batch.append(self._notes.popleft())
        while self._waiting and len(batch) < _MAX_FRAMES:
            parcel = self._waiting[0]
            if batch and nbytes + parcel.wire_nbytes > self._settings.post_bytes:
                break
            self._waiting.popleft()
            if parcel.dead:
                continue
            parcel.upload.waiting.popleft()
            self._ledger.depart(parcel.rows, parcel.nbytes)
            batch.append(parcel)
            nbytes += parcel.wire_nbytes
        return batch

    def _answered(self, results: Sequence[FrameResult], now: float) -> bool:
        again: list[Parcel] = []
        # A seal that follows a chunk to be sent again was refused for want of that chunk.
        unsettled: set[Upload] = set()
        for parcel, result in zip(self._batch, results, strict=True):
            if result.status != "refused":
                self._accepted(parcel)
            elif result.code in RETRYABLE_CODES or parcel.upload in unsettled:
                unsettled.add(parcel.upload)
                again.append(parcel)
            else:
                self._quiet.warning(
                    "the route store refused a %s of %s (%s): %s",
                    *(parcel.kind, parcel.upload.info.client.request_id),
                    *(result.code, result.message),
                )
                self._reject(parcel, result.code, now)
        progress = len(again) < len(self._batch)
        self._batch = [parcel for parcel in again if not self._expired(parcel, now)]
        if self._batch:
            self._ledger.store_error()
            self._not_before = now + self._backoff.next_delay_s(0.0)
        else:
            self._backoff.reset()
        return progress

    def _accepted(self, parcel: Parcel) -> None:
        self._ledger.acknowledge(parcel.rows, parcel.nbytes)
        if parcel.kind == "seal":
            self._ledger.record_ended("sealed")

    def _reject(self, parcel: Parcel, code: str, now: float) -> None:
        reason = f"rejected:{code}"
        self._ledger.drop_in_flight(parcel.rows, parcel.nbytes, reason)
        if parcel.kind != "drop":
            self._lose(parcel.upload, reason, now)

    def _expired(self, parcel: Parcel, now: float) -> bool:
        """Whether a frame that was not taken is given up; its record is lost then."""
        upload = parcel.upload
        if parcel.kind == "drop":
            return False
        if not upload.lost:
            if now - parcel.created_at < self._settings.retry_deadline_s:
                return False
            self._lose(upload, "store_unreachable", now)
        self._ledger.drop_in_flight(parcel.rows, parcel.nbytes, upload.lost or "")
        return True

    def _lose(self, upload: Upload, reason: str, now: float) -> None:
        if upload.lost:
            return
        upload.lost = reason
        arrays = upload.take()
        self._ledger.collected(len(arrays))
        self._drop_queued(upload, sum(map(len, arrays)), reason)
        while upload.waiting:
            parcel = upload.waiting.popleft()
            parcel.dead = True
            parcel.buffers = []
            self._ledger.drop_queued(parcel.rows, parcel.nbytes, reason)
        self._ledger.record_ended(f"dropped:{reason}")
        # After a conflict another record with this id is sealed: nothing is missing there.
        if reason != f"rejected:{RecordConflict.code}":
            self._notes.append(upload.drop(reason, now))
