"""Where every captured row is: one set of counters, one lock.

    captured = acked + queued + in_flight + spooled + sum(dropped)

holds at every instant, in rows and in bytes. `spooled` is what waits on disk.
"""

from __future__ import annotations

import threading
from collections import Counter
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
    store_errors: int = 0
    internal_errors: int = 0

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
        self._store_errors = 0
        self._internal_errors = 0
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

    def depart(self, rows: int, nbytes: int) -> None:
        """Queued rows go into a POST."""
        with self._lock:
            if self._final:
                return
            self._queued.add(-rows, -nbytes)
            self._in_flight.add(rows, nbytes)

    def acknowledge(self, rows: int, nbytes: int) -> None:
        """Rows of a POST were accepted."""
        with self._lock:
            if self._final:
                return
            self._in_flight.add(-rows, -nbytes)
            self._acked.add(rows, nbytes)

    def drop_queued(self, rows: int, nbytes: int, reason: str) -> None:
        """Queued rows are lost."""
        with self._lock:
            if self._final:
                return
            self._queued.add(-rows, -nbytes)
            self._drop(rows, nbytes, reason)

    def drop_in_flight(self, rows: int, nbytes: int, reason: str) -> None:
        """Rows of a POST are lost."""
        with self._lock:
            if self._final:
                return
            self._in_flight.add(-rows, -nbytes)
            self._drop(rows, nbytes, reason)

    def drop_everything(self, reason: str) -> Amount:
        """Count all that is still here as lost, once and for all, and return how much it was.

        A POST that is answered later changes nothing: its rows are counted already.
        """
        with self._lock:
            self._final = True
            left = Amount(self._queued.rows, self._queued.nbytes)
            left.add(self._in_flight.rows, self._in_flight.nbytes)
            self._queued, self._in_flight = Amount(), Amount()
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

    def store_error(self) -> None:
        """A POST failed and will be tried again."""
        with self._lock:
            self._store_errors += 1

    def internal_error(self) -> None:
        """The recorder itself failed somewhere."""
        with self._lock:
            self._internal_errors += 1

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
                store_errors=self._store_errors,
                internal_errors=self._internal_errors,
            )

    def _drop(self, rows: int, nbytes: int, reason: str) -> None:
        if rows or nbytes:
            self._dropped.setdefault(reason, Amount()).add(rows, nbytes)


def _copy(amount: Amount) -> Amount:
    return Amount(amount.rows, amount.nbytes)
