"""Where every captured row is: one set of counters, one lock.

    captured = acked + queued + in_flight + spooled + sum(dropped)

holds at every instant, in rows and in bytes. `spooled` is what waits on disk.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from routereplay.patches.vllm.settings import Settings


@dataclass(slots=True)
class Amount:
    """Rows and their bytes."""

    rows: int = 0
    nbytes: int = 0

    def add(self, rows: int, nbytes: int) -> None:
        """Add in place."""
        self.rows += rows
        self.nbytes += nbytes


@dataclass(frozen=True, slots=True)
class Stats:
    """One consistent reading of a ledger."""

    captured: Amount
    acked: Amount
    queued: Amount
    in_flight: Amount
    spooled: Amount
    dropped: dict[str, Amount]
    records: dict[str, int] = field(default_factory=dict)
    """`sealed`, and `dropped:<reason>`: choices of requests by how they ended."""
    not_recorded: dict[str, int] = field(default_factory=dict)
    """Requests that cannot be recorded, by reason."""
    suspects: dict[str, int] = field(default_factory=dict)
    """Records whose rows cannot be real, by reason."""
    events: dict[str, int] = field(default_factory=dict)
    """What happened on the way, by name: `store_error`, `internal_error`, `replayed`,
    rows `left_out`, deltas `orphaned`, `restarted`, `spool_adopted`, `spool_quarantined`,
    `spool_error`."""
    store_away: bool = False
    """The last tries failed; the next one is a probe."""
    oldest_unsent_s: float = 0.0
    """Age of the oldest frame that waits in memory or on disk."""

    @property
    def store_errors(self) -> int:
        """POSTs that failed and are tried again."""
        return self.events.get("store_error", 0)

    @property
    def internal_errors(self) -> int:
        """Times that the recorder itself failed."""
        return self.events.get("internal_error", 0)

    @property
    def balance(self) -> Amount:
        """`captured` minus everything that it must equal: zero rows and zero bytes."""
        left = Amount(self.captured.rows, self.captured.nbytes)
        parts = (self.acked, self.queued, self.in_flight, self.spooled, *self.dropped.values())
        for part in parts:
            left.add(-part.rows, -part.nbytes)
        return left

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts."""
        return asdict(self)


class Ledger:
    """Counts rows from capture to their end; every method is atomic and takes no time."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.queue_bytes
        self._max_items = settings.queue_items
        self._lock = threading.Lock()
        self._waiting_items = 0
        self._captured, self._acked, self._spooled = Amount(), Amount(), Amount()
        self._queued, self._in_flight = Amount(), Amount()
        self._dropped: dict[str, Amount] = {}
        self._records: Counter[str] = Counter()
        self._not_recorded: Counter[str] = Counter()
        self._suspects: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._store_away = False
        self._oldest_unsent_s = 0.0
        self._final = False

    def admit(self, items: int, rows: int, nbytes: int) -> bool:
        """Count captured rows as queued, or count nothing and return False: there is no room."""
        with self._lock:
            held = self._queued.nbytes + self._in_flight.nbytes
            full = held + nbytes > self._max_bytes or self._waiting_items + items > self._max_items
            if full or self._final:
                return False
            self._captured.add(rows, nbytes)
            self._queued.add(rows, nbytes)
            self._waiting_items += items
            return True

    def discard(self, rows: int, nbytes: int, reason: str) -> None:
        """Count rows that were captured and are dropped at once."""
        with self._lock:
            self._captured.add(rows, nbytes)
            self._drop(rows, nbytes, reason)

    def collected(self, items: int) -> None:
        """Arrays that the exporter thread took over; their rows are still queued."""
        with self._lock:
            self._waiting_items -= items

    @property
    def held_bytes(self) -> int:
        """Bytes of rows in memory."""
        with self._lock:
            return self._queued.nbytes + self._in_flight.nbytes

    def depart(self, rows: int, nbytes: int) -> None:
        """Queued rows go into a POST."""
        self._move(self._queued, self._in_flight, rows, nbytes)

    def acknowledge(self, rows: int, nbytes: int) -> None:
        """Rows of a POST were accepted."""
        self._move(self._in_flight, self._acked, rows, nbytes)

    def spool_queued(self, rows: int, nbytes: int) -> None:
        """Queued rows were written to disk."""
        self._move(self._queued, self._spooled, rows, nbytes)

    def spool_in_flight(self, rows: int, nbytes: int) -> None:
        """Rows of a POST that was not taken are on disk, written now or still there."""
        self._move(self._in_flight, self._spooled, rows, nbytes)

    def depart_spooled(self, rows: int, nbytes: int) -> None:
        """Rows that were read from disk go into a POST."""
        self._move(self._spooled, self._in_flight, rows, nbytes)

    def salvage(self, rows: int, nbytes: int) -> None:
        """Rows of a damaged file that are whole are queued again."""
        self._move(self._spooled, self._queued, rows, nbytes)

    def adopt(self, rows: int, nbytes: int) -> None:
        """Rows that a dead process left on disk are this one's from now on."""
        with self._lock:
            if self._final:
                return
            self._captured.add(rows, nbytes)
            self._spooled.add(rows, nbytes)
            self._events["spool_adopted"] += rows

    def drop_queued(self, rows: int, nbytes: int, reason: str) -> None:
        """Queued rows are lost."""
        self._drop_from(self._queued, rows, nbytes, reason)

    def drop_in_flight(self, rows: int, nbytes: int, reason: str) -> None:
        """Rows of a POST are lost."""
        self._drop_from(self._in_flight, rows, nbytes, reason)

    def drop_spooled(self, rows: int, nbytes: int, reason: str) -> None:
        """Rows on disk are lost."""
        self._drop_from(self._spooled, rows, nbytes, reason)

    def drop_everything(self, reason: str) -> Amount:
        """Count all that is in memory as lost, once and for all, and return how much it was.

        What is on disk stays there. A POST that is answered later changes nothing: its rows
        are counted already.
        """
        with self._lock:
            self._final = True
            left = Amount(self._queued.rows, self._queued.nbytes)
            left.add(self._in_flight.rows, self._in_flight.nbytes)
            for amount in (self._queued, self._in_flight):
                amount.rows = amount.nbytes = 0
            self._waiting_items = 0
            self._drop(left.rows, left.nbytes, reason)
            return left

    def record_ended(self, outcome: str) -> None:
        """One choice of one request ended: `sealed` or `dropped:<reason>`."""
        with self._lock:
            self._records[outcome] += 1

    def not_recorded(self, reason: str) -> None:
        """A request that cannot be recorded went by."""
        with self._lock:
            self._not_recorded[reason] += 1

    def suspect(self, reasons: Iterable[str]) -> None:
        """The rows of one record cannot be real."""
        with self._lock:
            self._suspects.update(reasons)

    def happened(self, event: str, count: int = 1) -> None:
        """Count one of `Stats.events`."""
        with self._lock:
            self._events[event] += count

    def internal_error(self) -> None:
        """The recorder itself failed somewhere."""
        self.happened("internal_error")

    def observe(self, *, store_away: bool, oldest_unsent_s: float) -> None:
        """Note how the way to the store looks."""
        with self._lock:
            self._store_away, self._oldest_unsent_s = store_away, oldest_unsent_s

    def stats(self) -> Stats:
        """Return one consistent reading."""
        with self._lock:
            return Stats(
                captured=_copy(self._captured),
                acked=_copy(self._acked),
                queued=_copy(self._queued),
                in_flight=_copy(self._in_flight),
                spooled=_copy(self._spooled),
                dropped={reason: _copy(amount) for reason, amount in self._dropped.items()},
                records=dict(self._records),
                not_recorded=dict(self._not_recorded),
                suspects=dict(self._suspects),
                events=dict(self._events),
                store_away=self._store_away,
                oldest_unsent_s=self._oldest_unsent_s,
            )

    def _move(self, source: Amount, target: Amount, rows: int, nbytes: int) -> None:
        with self._lock:
            if not self._final:
                source.add(-rows, -nbytes)
                target.add(rows, nbytes)

    def _drop_from(self, source: Amount, rows: int, nbytes: int, reason: str) -> None:
        with self._lock:
            if not self._final:
                source.add(-rows, -nbytes)
                self._drop(rows, nbytes, reason)

    def _drop(self, rows: int, nbytes: int, reason: str) -> None:
        if rows or nbytes:
            self._dropped.setdefault(reason, Amount()).add(rows, nbytes)


def _copy(amount: Amount) -> Amount:
    return Amount(amount.rows, amount.nbytes)
