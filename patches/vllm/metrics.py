"""The ledger as Prometheus metrics, shown on vLLM's own `/metrics`.

Real counters that are pushed to, not a collector that is asked: with several API server
processes vLLM serves what prometheus_client wrote to shared files, and a collector that
only answers in its own process would not be in them.
"""

from __future__ import annotations

import logging
from typing import Any

from prometheus_client import Counter, Gauge, start_http_server

from routereplay.patches.vllm.ledger import Amount, Stats

logger = logging.getLogger(__name__)

_P = "routereplay_recorder"
_ERRORS = frozenset({"store", "internal", "spool"})


class Metrics:
    """Publishes readings of one ledger to prometheus_client's default registry."""

    def __init__(self) -> None:
        self._rows = Counter(f"{_P}_rows", "Rows by what became of them.", ["state"])
        self._bytes = Counter(f"{_P}_bytes", "Bytes of rows by what became of them.", ["state"])
        self._held_rows = _gauge("held_rows", "Rows that wait for the store.", "state")
        self._held = _gauge("held_bytes", "Bytes of rows that wait for the store.", "state")
        self._unaccounted = _gauge("unaccounted_rows", "Captured rows that are nowhere: always 0.")
        self._away = _gauge("store_away", "Processes whose last tries of the store failed.")
        self._oldest = Gauge(
            f"{_P}_oldest_unsent_seconds",
            "Age of the oldest rows that wait for the store.",
            multiprocess_mode="livemax",
        )
        self._records = Counter(f"{_P}_records", "Choices by how their record ended.", ["outcome"])
        self._not_recorded = Counter(
            f"{_P}_not_recorded_requests", "Requests that cannot be recorded.", ["reason"]
        )
        self._errors = Counter(f"{_P}_errors", "Failed POSTs, disks, and own steps.", ["kind"])
        self._events = Counter(f"{_P}_events", "What happened on the way.", ["event"])
        self._canary = Gauge(
            f"{_P}_canary",
            "Engine front ends by what the canary found.",
            ["state"],
            multiprocess_mode="livesum",
        )
        self._suspect = Counter(
            f"{_P}_suspect_records", "Records whose rows cannot be real.", ["reason"]
        )
        self._seen: dict[tuple[Any, str], int] = {}

    def canary(self, state: str) -> None:
        """Say what the canary of this process found."""
        for other in ("pending", "proven", "unproven", "failed"):
            self._canary.labels(other).set(other == state)

    def publish(self, stats: Stats) -> None:
        """Bring every metric up to `stats`; called by one thread."""
        self._amount("captured", stats.captured)
        self._amount("acked", stats.acked)
        for reason, amount in stats.dropped.items():
            self._amount(f"dropped:{reason}", amount)
        for state, amount in (
            ("queued", stats.queued),
            ("in_flight", stats.in_flight),
            ("spooled", stats.spooled),
        ):
            self._held_rows.labels(state).set(amount.rows)
            self._held.labels(state).set(amount.nbytes)
        self._unaccounted.set(stats.balance.rows)
        self._away.set(stats.store_away)
        self._oldest.set(stats.oldest_unsent_s)
        for outcome, count in stats.records.items():
            self._raise_to(self._records, outcome, count)
        for reason, count in stats.not_recorded.items():
            self._raise_to(self._not_recorded, reason, count)
        for reason, count in stats.suspects.items():
            self._raise_to(self._suspect, reason, count)
        for event, count in stats.events.items():
            kind = event.removesuffix("_error")
            if kind in _ERRORS:
                self._raise_to(self._errors, kind, count)
            else:
                self._raise_to(self._events, event, count)

    def _amount(self, state: str, amount: Amount) -> None:
        self._raise_to(self._rows, state, amount.rows)
        self._raise_to(self._bytes, state, amount.nbytes)

    def _raise_to(self, counter: Any, label: str, value: int) -> None:
        before = self._seen.get((counter, label), 0)
        if value > before:
            counter.labels(label).inc(value - before)
            self._seen[counter, label] = value


def serve_metrics(port: int) -> None:
    """Show this process's metrics on 127.0.0.1: it has no `/metrics` of vLLM's."""
    try:
        start_http_server(port, addr="127.0.0.1")
    except OSError as error:
        logger.error(
            "route recorder: no metrics on port %d: %s; it records all the same", port, error
        )
    else:
        logger.info("route recorder: metrics on http://127.0.0.1:%d/metrics", port)


def _gauge(name: str, about: str, *labels: str) -> Any:
    return Gauge(f"{_P}_{name}", about, labels, multiprocess_mode="livesum")
