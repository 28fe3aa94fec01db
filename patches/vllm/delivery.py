"""Frames to the store: one POST at a time, from memory and from disk in turns.

Used by the exporter thread alone. The store that is away costs nobody anything: what
waits goes to disk if there is a spool, and stays in memory, bounded, if not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from routereplay.patches.vllm.backlog import Backlog
from routereplay.patches.vllm.backoff import Breaker
from routereplay.patches.vllm.courier import Courier
from routereplay.patches.vllm.guard import QuietLogger
from routereplay.patches.vllm.ledger import Ledger
from routereplay.patches.vllm.outbox import Outbox
from routereplay.patches.vllm.parcel import Batch, Parcel
from routereplay.patches.vllm.sender import Answered, Refused, Withheld
from routereplay.patches.vllm.settings import Settings
from routereplay.wire.errors import RETRYABLE_CODES, MalformedFrame, ParentLost, ParentMismatch
from routereplay.wire.records import FrameResult

logger = logging.getLogger(__name__)

_MAX_FRAMES = 1024
"""Frames in one POST."""
_SPOOL_AGE_S = 1.0
"""How long frames gather before they go to disk, so that files are few."""
_MEMORY_PART = 0.5
"""Part of the memory bound from which on rows go to disk though the store answers."""
_ANY_SIZE = 1 << 62
_WITHOUT_PARENT = frozenset({ParentLost.code, ParentMismatch.code})
_DAMAGED_MAX = 3
"""How often a frame that was damaged on its way is sent again."""


class Delivery:
    """Moves frames on, counts every move, and keeps what the store does not take yet.

    Args:
        settings: sizes and times.
        ledger: where every move of rows is counted.
        outbox: frames in memory, and which records are lost.
        courier: what sends a POST.
        backlog: frames on disk, if there is a spool.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        outbox: Outbox,
        courier: Courier,
        backlog: Backlog | None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._outbox = outbox
        self._courier = courier
        self._backlog = backlog
        self._breaker = Breaker(settings.retry_ceiling_s)
        self._quiet = QuietLogger(logger)
        self._withheld = QuietLogger(logger, every_s=60.0)
        self._batch: Batch | None = None
        self._post_bytes = settings.post_bytes
        self._one_by_one = False
        """The store refused a POST as a whole: find out which frame it was."""
        self._disk_next = True
        self._memory_first = False

    @property
    def busy(self) -> bool:
        """Whether anything waits to be sent, in memory or on disk."""
        return self._in_memory or (self._backlog is not None and bool(self._backlog))

    @property
    def _in_memory(self) -> bool:
        return self._batch is not None or self._outbox.busy

    def step(self, now: float) -> bool:
        """Take an answer, write to disk, begin a POST: what is due; return whether the store
        took something. Never waits for the network; `now` in monotonic seconds.
        """
        progress = self._take_answer(now)
        self._spool_if_due(now)
        if not self._courier.busy and self._breaker.may_try(now):
            self._begin(now)
        self._observe(now)
        return progress

    def finish(self, by: float) -> None:
        """The process ends: send what can be sent, write the rest to disk, until `by`."""
        backlog, self._memory_first = self._backlog, True
        # Writing to disk is fast, and comes last.
        send_by = by if backlog is None else by - 0.4 * self._settings.flush_timeout_s
        failures = self._breaker.failures
        self._breaker.hurry()
        while self.busy and (now := time.monotonic()) < send_by:
            if backlog is not None and self._breaker.open and self._breaker.failures > failures:
                break  # It was asked once more, and the disk is the better place.
            if not self.step(now):
                self._breaker.hurry()
                time.sleep(0.01 if self._courier.busy else 0.1)
        if backlog is None:
            return
        if self._batch is not None:
            self._give_to_disk(backlog, self._batch, time.monotonic())
        while self._in_memory and (now := time.monotonic()) < by:
            if not backlog.write(now, notes=True):
                break
        backlog.close()

    def close(self) -> None:
        """End the sending thread."""
        self._courier.close()

    def _take_answer(self, now: float) -> bool:
        outcome, batch = self._courier.outcome(), self._batch
        if outcome is None or batch is None:
            return False
        if isinstance(outcome, Answered):
            return self._answered(batch, outcome.results, now)
        if isinstance(outcome, Refused):
            return self._refused(batch, outcome, now)
        self._ledger.happened("store_error")
        self._post_bytes = max(self._post_bytes // 2, self._settings.chunk_bytes)
        if isinstance(outcome, Withheld):
            self._withheld.warning(
                "the route store at %s does not take routes from here (%s): %s. They are kept "
                "until it does. A new key in ROUTEREPLAY_API_KEY_FILE is read without a restart",
                *(self._settings.store_name, outcome.code, outcome.message),
            )
            self._breaker.failed(now)
        else:
            self._quiet.warning(
                "the route store at %s did not take routes, trying again: %s",
                *(self._settings.store_name, outcome.why),
            )
            self._breaker.failed(now, outcome.retry_after_s)
            self._expire(batch, now)
        self._not_taken(batch, now)
        return False

    def _answered(self, batch: Batch, results: Sequence[FrameResult], now: float) -> bool:
        again: list[Parcel] = []
        orphans: list[Parcel] = []
        # A seal that follows a chunk to be sent again was refused for want of that chunk.
        unsettled: set[str] = set()
        for parcel, result in zip(batch.parcels[: batch.sent], results, strict=True):
            if result.status != "refused":
                self._accepted(batch, parcel, result)
            elif (
                result.code in RETRYABLE_CODES
                or parcel.origin.upload_id in unsettled
                or self._was_damaged(parcel, result.code)
            ):
                unsettled.add(parcel.origin.upload_id)
                again.append(parcel)
            elif result.code in _WITHOUT_PARENT and parcel.orphan():
                self._lost_parent(parcel, result)
                orphans.append(parcel)
            else:
                self._reject(batch, parcel, result.code, result.message, now)
        progress = len(again) < batch.sent
        batch.parcels = again + orphans + batch.parcels[batch.sent :]
        if again:
            self._ledger.happened("store_error")
            self._breaker.failed(now)
            self._expire(batch, now)
            self._not_taken(batch, now)
        else:
            self._breaker.succeeded()
            self._post_bytes = min(self._post_bytes * 2, self._settings.post_bytes)
            self._finish_if_empty(batch)
        return progress

    def _refused(self, batch: Batch, outcome: Refused, now: float) -> bool:
        """The store looked at no single frame: send them one by one, and only one is lost."""
        if batch.sent > 1:
            self._one_by_one = True
            return True
        parcel = batch.parcels[0]
        if self._was_damaged(parcel, outcome.code):
            self._breaker.failed(now)
            return False
        self._reject(batch, parcel, outcome.code, outcome.message, now)
        del batch.parcels[0]
        self._finish_if_empty(batch)
        return True

    def _was_damaged(self, parcel: Parcel, code: str) -> bool:
        """Whether a frame that was whole when it was made may have been damaged on its way."""
        if code != MalformedFrame.code or parcel.damaged >= _DAMAGED_MAX:
            return False
        parcel.damaged += 1
        return True

    def _accepted(self, batch: Batch, parcel: Parcel, result: FrameResult) -> None:
        self._ledger.acknowledge(parcel.rows, parcel.nbytes)
        if result.status == "replayed":
            self._ledger.happened("replayed")
        if parcel.kind == "seal":
            self._ledger.record_ended("sealed")
            origin = parcel.origin
            logger.debug("sealed %s choice %d", origin.request_id, origin.choice)
        self._settle(batch, parcel)

    def _lost_parent(self, parcel: Parcel, result: FrameResult) -> None:
        """The rows of a delta are right, those before them are gone: the next turn has all."""
        self._ledger.happened("orphaned")
        self._quiet.warning(
            "the route store has not what a turn goes on from (%s): %s. Its own rows are stored; "
            "the next turn of its trajectory is recorded whole",
            *(result.code, result.message),
        )
        self._outbox.forget_prefix(parcel.origin)

    def _reject(self, batch: Batch, parcel: Parcel, code: str, why: str, now: float) -> None:
        self._quiet.warning(
            "the route store refused a %s of %s for good (%s): %s",
            *(parcel.kind, parcel.origin.request_id, code, why),
        )
        reason = f"rejected:{code}"
        self._drop(batch, parcel, reason)
        if parcel.kind != "drop":
            self._outbox.give_up(parcel.origin, reason, now)

    def _expire(self, batch: Batch, now: float) -> None:
        """Give up frames in memory that waited too long, and those of records that are lost."""
        kept = []
        for parcel in batch.parcels:
            age_s = now - parcel.created_at
            if parcel.kind != "drop" and not self._outbox.why_lost(parcel.origin):
                if age_s < self._settings.retry_deadline_s or self._backlog is not None:
                    kept.append(parcel)
                    continue
                self._outbox.give_up(parcel.origin, "store_unreachable", now)
            elif parcel.kind == "drop":
                kept.append(parcel)
                continue
            self._drop(batch, parcel, self._outbox.why_lost(parcel.origin) or "")
        batch.parcels = kept

    def _not_taken(self, batch: Batch, now: float) -> None:
        if not batch.parcels:
            self._finish_if_empty(batch)
        elif self._backlog is not None and (batch.file is not None or self._breaker.open):
            self._give_to_disk(self._backlog, batch, now)

    def _give_to_disk(self, backlog: Backlog, batch: Batch, now: float) -> None:
        if backlog.take_back(batch, now):
            self._batch, self._one_by_one = None, False

    def _drop(self, batch: Batch, parcel: Parcel, reason: str) -> None:
        self._ledger.drop_in_flight(parcel.rows, parcel.nbytes, reason)
        self._settle(batch, parcel)

    def _settle(self, batch: Batch, parcel: Parcel) -> None:
        if self._backlog is not None:
            self._backlog.settle(batch, parcel)

    def _finish_if_empty(self, batch: Batch) -> None:
        if not batch.parcels:
            self._batch, self._one_by_one = None, False
            if self._backlog is not None:
                self._backlog.finish(batch)

    def _spool_if_due(self, now: float) -> None:
        backlog, waiting = self._backlog, self._outbox.waiting
        if backlog is None or not waiting:
            return
        pressed = self._ledger.held_bytes > _MEMORY_PART * self._settings.queue_bytes
        gathered = (
            self._outbox.waiting_bytes >= self._settings.post_bytes
            or now - waiting[0].created_at >= _SPOOL_AGE_S
        )
        if pressed or (self._breaker.open and gathered):
            while waiting and backlog.write(now):
                pass

    def _begin(self, now: float) -> None:
        if self._batch is None:
            self._batch = self._next_batch(now)
        batch = self._batch
        if batch is None:
            return
        batch.sent = self._how_many(batch.parcels)
        self._courier.start([parcel.buffers for parcel in batch.parcels[: batch.sent]])

    def _how_many(self, parcels: list[Parcel]) -> int:
        if self._one_by_one or self._breaker.open:
            return 1
        nbytes = count = 0
        for parcel in parcels:
            nbytes += parcel.wire_nbytes
            if count and nbytes > self._post_bytes:
                break
            count += 1
        return count

    def _next_batch(self, now: float) -> Batch | None:
        """Take from memory and from disk in turns: neither waits for all of the other."""
        backlog, self._disk_next = self._backlog, not self._disk_next
        if backlog is None:
            return self._from_memory()
        if self._disk_next and not self._memory_first:
            return backlog.next_batch(now) or self._from_memory()
        return self._from_memory() or backlog.next_batch(now)

    def _from_memory(self) -> Batch | None:
        parcels: list[Parcel] = []
        nbytes = 0
        while self._outbox.notes and len(parcels) < _MAX_FRAMES:
            parcels.append(self._outbox.notes.popleft())
        while len(parcels) < _MAX_FRAMES:
            room = self._post_bytes - nbytes if parcels else _ANY_SIZE
            parcel = self._outbox.next_parcel(room)
            if parcel is None:
                break
            self._ledger.depart(parcel.rows, parcel.nbytes)
            parcels.append(parcel)
            nbytes += parcel.wire_nbytes
        return Batch(parcels) if parcels else None

    def _observe(self, now: float) -> None:
        oldest_s = 0.0
        waiting = self._batch.parcels if self._batch else self._outbox.waiting
        if waiting:
            oldest_s = now - waiting[0].created_at
        if self._backlog is not None:
            oldest_s = max(oldest_s, self._backlog.age_s)
        self._ledger.observe(store_away=self._breaker.open, oldest_unsent_s=oldest_s)
