"""The way out of the process: one thread between the event loop and the store.

vLLM's event loop appends references to a record's own deque and never waits; to join,
hash, frame, spool and count them is the thread's work, and a second one waits for the
network. They start with the first request, or at once if there is a spool to look
through. A forked child has neither them nor what they hold, and starts afresh.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from routereplay.patches.vllm.backlog import Backlog
from routereplay.patches.vllm.courier import Courier
from routereplay.patches.vllm.delivery import Delivery
from routereplay.patches.vllm.guard import Guard
from routereplay.patches.vllm.ledger import Ledger, Stats
from routereplay.patches.vllm.outbox import Outbox
from routereplay.patches.vllm.prefix import KnownPrefixes
from routereplay.patches.vllm.record import Ending, RecordInfo
from routereplay.patches.vllm.sender import Sender
from routereplay.patches.vllm.settings import Settings
from routereplay.patches.vllm.spool import Spool
from routereplay.patches.vllm.spool_folder import prepare_root

logger = logging.getLogger(__name__)

_TICK_S = 0.02
"""How often the thread looks while there is work: steps of the engine are gathered."""
_IDLE_S = 5.0
"""How often it looks when there is none, to publish its figures."""
_PUBLISH_S = 0.1
"""How often figures are published at most."""
_ADOPT_S = 30.0
"""How often the folders of dead processes are looked for."""
_RESTART_S = 0.2
"""Pause before the thread goes on after an error that nothing else caught."""
_GRACE_S = 0.5
"""What the end of the process may take on top, if a disk hangs."""
_BREATH_S = 0.0002
"""A pause after each framed record, or the event loop would wait for the interpreter's
switch interval (5 ms) whenever many records are due at once."""


class _Opened(NamedTuple):
    info: RecordInfo
    source: deque[np.ndarray]


class _Sealed(NamedTuple):
    info: RecordInfo
    ending: Ending


class _Lost(NamedTuple):
    info: RecordInfo
    reason: str


_Event: TypeAlias = _Opened | _Sealed | _Lost


def breathe() -> None:
    """Leave the interpreter to the event loop for a moment."""
    time.sleep(_BREATH_S)


class Exporter:
    """Takes rows from the event loop and brings them to the store; never blocks or raises there.

    Args:
        settings: where to, and how much may wait.
        publish: called by the thread, now and then, with the latest figures.

    Raises:
        ValueError: `settings.spool_dir` is no place for a spool.
    """

    def __init__(
        self, settings: Settings, publish: Callable[[Stats], None] = lambda stats: None
    ) -> None:
        self._settings = settings
        self._publish = publish
        if settings.spool_dir is not None:
            prepare_root(settings.spool_dir)
        self._spool: Spool | None = None
        self._reset()
        if self._spool is not None:
            self._start()
        this = weakref.ref(self)

        def after_fork() -> None:
            exporter = this()
            if exporter is not None:
                exporter._reset()

        os.register_at_fork(after_in_child=after_fork)

    def _reset(self) -> None:
        if self._spool is not None:
            self._spool.abandon()
        self.ledger = Ledger(self._settings)
        self.known = KnownPrefixes()
        root = self._settings.spool_dir
        self._spool = Spool(root, self._settings, self.ledger) if root is not None else None
        self._backlog: Backlog | None = None
        self._inbox: deque[_Event] = deque()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._wake = threading.Event()
        self._idle = False
        self._closing = False
        self._close_by = 0.0
        self._published_at = self._adopted_at = -_ADOPT_S

    def open(self, info: RecordInfo, source: deque[np.ndarray]) -> None:
        """A record begins; admitted rows are appended to `source`, and taken from it here."""
        self._post(_Opened(info, source))

    def admit(self, arrays: int, rows: int, nbytes: int) -> bool:
        """Ask for room for the rows of one engine step, before they are appended."""
        return self.ledger.admit(arrays, rows, nbytes)

    @property
    def full_reason(self) -> str:
        """Why there is no room."""
        if self._closing:
            return "shutdown"
        return "spool_full" if self._spool is not None and self._spool.full else "queue_full"

    @property
    def is_drained(self) -> bool:
        """Whether nothing waits, in memory or on disk; dead processes' folders were looked for."""
        return self._idle

    @property
    def only_new_rows(self) -> bool:
        """Whether rows that another record has are left out."""
        return self._settings.only_new_rows

    @property
    def store_name(self) -> str:
        """The store, without credentials."""
        return self._settings.store_name

    def seal(self, info: RecordInfo, ending: Ending) -> None:
        """All rows of a record are in its source."""
        self._post(_Sealed(info, ending))

    def drop(self, info: RecordInfo, reason: str) -> None:
        """A record is lost; no rows of it will come any more."""
        self._post(_Lost(info, reason))

    def stats(self) -> Stats:
        """Return one consistent reading of the counters."""
        return self.ledger.stats()

    def close(self, timeout_s: float | None = None) -> None:
        """Send or spool what is left, for a bounded time, and drop the rest. Idempotent."""
        if self._closing:
            return
        timeout_s = self._settings.flush_timeout_s if timeout_s is None else timeout_s
        self._close_by = time.monotonic() + timeout_s
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s + _GRACE_S)
        left = self.ledger.drop_everything("shutdown")
        stats = self.stats()
        logger.info(
            "route recorder ends: %d rows captured, %d in the store, %d on disk, %d lost now",
            *(stats.captured.rows, stats.acked.rows, stats.spooled.rows, left.rows),
        )

    def _post(self, event: _Event) -> None:
        if self._closing:
            return
        self._inbox.append(event)
        if self._thread is None:
            self._start()
        if self._idle:
            self._wake.set()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(
                    target=self._run, name="routereplay-exporter", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        work: tuple[Outbox, Delivery, Guard] | None = None
        while True:
            try:
                work = work or self._work()
                self._work_on(*work)
                return
            except BaseException:
                # A thread that ended would leave the recorder filling its queue for ever.
                self.ledger.happened("restarted")
                logger.exception("route recorder: its thread failed and goes on; vLLM serves")
                if self._closing:
                    return
            time.sleep(_RESTART_S)

    def _work(self) -> tuple[Outbox, Delivery, Guard]:
        settings, ledger = self._settings, self.ledger
        outbox = Outbox(settings, ledger, breathe, self.known.forget)
        if self._spool is not None:
            self._backlog = Backlog(self._spool, ledger, outbox, settings.post_bytes)
        courier = Courier(Sender(settings), self._wake.set)
        delivery = Delivery(settings, ledger, outbox, courier, self._backlog)
        return outbox, delivery, Guard(logger, ledger.internal_error, self._give_up)

    def _work_on(self, outbox: Outbox, delivery: Delivery, guard: Guard) -> None:
        while not (self._closing or guard.tripped):
            if not guard.run(self._turn, outbox, delivery):
                self._wait(outbox, delivery)
        guard.run(self._finish, outbox, delivery)
        delivery.close()

    def _turn(self, outbox: Outbox, delivery: Delivery) -> bool:
        now = time.monotonic()
        self._collect(outbox, now)
        outbox.flush(now)
        if self._backlog is not None and now - self._adopted_at >= _ADOPT_S:
            self._adopted_at = now
            self._backlog.adopt()
        progress = delivery.step(now)
        if now - self._published_at >= _PUBLISH_S:
            self._published_at = now
            self._publish(self.ledger.stats())
        return progress

    def _wait(self, outbox: Outbox, delivery: Delivery) -> None:
        if self._inbox or outbox.active or delivery.busy:
            self._wake.wait(_TICK_S)
        else:
            self._publish(self.ledger.stats())
            self._idle = True
            # Looked at again after the flag is up, so no event falls between the two.
            if not self._inbox:
                self._wake.wait(_IDLE_S)
            self._idle = False
        if not self._closing:
            self._wake.clear()

    def _collect(self, outbox: Outbox, now: float) -> None:
        while self._inbox:
            event = self._inbox.popleft()
            if isinstance(event, _Sealed):
                outbox.end(event.info, event.ending, now)
            elif isinstance(event, _Lost):
                outbox.lose(event.info, event.reason, now)
            else:
                outbox.open(event.info, event.source)

    def _finish(self, outbox: Outbox, delivery: Delivery) -> None:
        now = time.monotonic()
        self._collect(outbox, now)
        outbox.lose_open("shutdown", now)
        delivery.finish(self._close_by)
        self._publish(self.ledger.stats())

    def _give_up(self) -> None:
        self._closing = True
        self._inbox.clear()
        self.ledger.drop_everything("internal_error")
