"""The ledger as Prometheus metrics, shown on vLLM's own `/metrics`.

Real counters that are pushed to, not a collector that is asked: with several API server
processes vLLM serves what prometheus_client wrote to shared files, and a collector that
only answers in its own process would not be in them.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter, Gauge

from routereplay.patches.vllm.ledger import Amount, Stats

_P = "routereplay_recorder"


class Metrics:
    """Publishes readings of one ledger to prometheus_client's default registry."""

    def __init__(self) -> None:
        self._rows = Counter(f"{_P}_rows", "Rows by what became of them.", ["state"])
        self._bytes = Counter(f"{_P}_bytes", "Bytes of rows by what became of them.", ["state"])
        self._held = Gauge(
            f"{_P}_held_bytes",
            "Bytes of rows that wait for the store.",
            ["state"],
            multiprocess_mode="livesum",
        )
        self._records = Counter(f"{_P}_records", "Choices by how their record ended.", ["outcome"])
        self._not_recorded = Counter(
            f"{_P}_not_recorded_requests", "Requests that cannot be recorded.", ["reason"]
        )
        self._errors = Counter(f"{_P}_errors", "Failed POSTs and internal errors.", ["kind"])
        self._seen: dict[tuple[Any, str], int] = {}

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
            self._held.labels(state).set(amount.nbytes)
        for outcome, count in stats.records.items():
            self._raise_to(self._records, outcome, count)
        for reason, count in stats.not_recorded.items():
            self._raise_to(self._not_recorded, reason, count)
        self._raise_to(self._errors, "store", stats.store_errors)
        self._raise_to(self._errors, "internal", stats.internal_errors)

    def _amount(self, state: str, amount: Amount) -> None:
        self._raise_to(self._rows, state, amount.rows)
        self._raise_to(self._bytes, state, amount.nbytes)

    def _raise_to(self, counter: Any, label: str, value: int) -> None:
        before = self._seen.get((counter, label), 0)
        if value > before:
            counter.labels(label).inc(value - before)
            self._seen[counter, label] = value
