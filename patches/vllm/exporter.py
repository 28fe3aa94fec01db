"""The way out of the process: one thread between the event loop and the store.

vLLM's event loop appends references to a record's own deque and never waits; to join,
hash, frame and send them is the thread's work. It starts with the first request, so a
process that is forked before holds none, and one that is forked after starts afresh.
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

from routereplay.patches.vllm.guard import Guard
from routereplay.patches.vllm.ledger import Ledger, Stats
from routereplay.patches.vllm.outbox import Outbox
from routereplay.patches.vllm.prefix import KnownPrefixes
from routereplay.patches.vllm.record import Ending, RecordInfo
from routereplay.patches.vllm.sender import Sender
from routereplay.patches.vllm.settings import Settings

logger = logging.getLogger(__name__)

_TICK_S = 0.02
"""How often the thread looks while there is work: steps of the engine are gathered."""
_IDLE_S = 5.0
"""How often it looks when there is none, to publish its figures."""
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
    """

    def __init__(
        self, settings: Settings, publish: Callable[[Stats], None] = lambda stats: None
    ) -> None:
        self._settings = settings
        self._publish = publish
        self._reset()
        this = weakref.ref(self)

        def after_fork() -> None:
            exporter = this()
            if exporter is not None:
                exporter._reset()

        os.register_at_fork(after_in_child=after_fork)

    def _reset(self) -> None:
        self.ledger = Ledger(self._settings)
        self.known = KnownPrefixes()
        self._inbox: deque[_Event] = deque()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._wake = threading.Event()
        self._idle = False
        self._closing = False
        self._close_by = 0.0

    def open(self, info: RecordInfo, source: deque[np.ndarray]) -> None:
        """A record begins; admitted rows are appended to `source`, and taken from it here."""
        self._post(_Opened(info, source))

    def admit(self, arrays: int, rows: int, nbytes: int) -> bool:
        """Ask for room for the rows of one engine step, before they are appended."""
        return self.ledger.admit(arrays, rows, nbytes)

    @property
    def full_reason(self) -> str:
        """Why there is no room."""
        return "shutdown" if self._closing else "queue_full"

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
        """Send what is left, for a bounded time, and count the rest as dropped. Idempotent."""
        if self._closing:
            return
        timeout_s = self._settings.flush_timeout_s if timeout_s is None else timeout_s
        self._close_by = time.monotonic() + timeout_s
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        left = self.ledger.drop_everything("shutdown")
        stats = self.stats()
        logger.info(
            "route recorder ends: %d rows captured, %d in the store, %d lost at the end",
            *(stats.captured.rows, stats.acked.rows, left.rows),
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
        ledger = self.ledger
        sender = Sender(self._settings)
        outbox = Outbox(self._settings, ledger, sender, breathe)
        guard = Guard(logger, ledger.internal_error, self._give_up)
        try:
            while not (self._closing or guard.tripped):
                progress = guard.run(self._turn, outbox)
                if not progress:
                    self._wait(outbox)
            guard.run(self._finish, outbox)
        finally:
            sender.close()

    def _turn(self, outbox: Outbox) -> bool:
        now = time.monotonic()
        self._collect(outbox, now)
        outbox.flush(now)
        progress = outbox.send(now)
        self._publish(self.ledger.stats())
        return progress

    def _wait(self, outbox: Outbox) -> None:
        if self._inbox or outbox.active:
            self._wake.wait(_TICK_S)
        else:
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

    def _finish(self, outbox: Outbox) -> None:
        now = time.monotonic()
        self._collect(outbox, now)
        outbox.lose_open("shutdown", now)
        while outbox.busy and time.monotonic() < self._close_by:
            if not outbox.send(time.monotonic()):
                time.sleep(0.1)
                outbox.hurry()
        self._publish(self.ledger.stats())

    def _give_up(self) -> None:
        self._closing = True
        self._inbox.clear()
        self.ledger.drop_everything("internal_error")
