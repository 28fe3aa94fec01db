"""Every metric of the sidecar, with its name and unit, in one place."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from routereplay.sidecar.version import package_version
from routereplay.wire.errors import HTTP_STATUS
from routereplay.wire.frame import Frame
from routereplay.wire.records import Drop, FrameResult, Seal


class Metrics:
    """The metrics of one app, in a registry of its own so that two apps never share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http_requests = Counter(
            "routereplay_http_requests_total",
            "HTTP requests answered.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.http_seconds = Histogram(
            "routereplay_http_request_seconds",
            "Seconds from request to the end of the response; waits included.",
            ["route"],
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
            registry=self.registry,
        )
        self.http_closed = Counter(
            "routereplay_http_closed_total",
            "Connections ended early, by what they did not do or did too much of.",
            ["reason"],
            registry=self.registry,
        )
        self.frames = Counter(
            "routereplay_ingest_frames_total",
            "Ingested frames by kind and by what became of them.",
            ["kind", "status"],
            registry=self.registry,
        )
        self.refused = Counter(
            "routereplay_ingest_refused_total",
            "Refused frames by error code.",
            ["code"],
            registry=self.registry,
        )
        self.ingest_bytes = Counter(
            "routereplay_ingest_bytes_total", "Bytes of ingest bodies read.", registry=self.registry
        )
        self.inflight_bytes = Gauge(
            "routereplay_ingest_inflight_bytes",
            "Bytes of ingest bodies in memory.",
            registry=self.registry,
        )
        self.sent_bytes = Counter(
            "routereplay_fetch_bytes_total", "Bytes of route responses.", registry=self.registry
        )
        self.errors = Counter(
            "routereplay_errors_total",
            "Requests answered with an error, by code.",
            ["code"],
            registry=self.registry,
        )
        self.engine_up = Gauge(
            "routereplay_engine_up",
            "1 if the engine answers and is set up for the promised durability, else 0.",
            registry=self.registry,
        )
        self.engine_memory = Gauge(
            "routereplay_engine_memory_bytes",
            "Memory of the engine: used, and the most that it may use.",
            ["kind"],
            registry=self.registry,
        )
        self.data_lost = Counter(
            "routereplay_engine_data_lost_total",
            "How often the engine was found without what it had held.",
            registry=self.registry,
        )
        self.backpressure = Counter(
            "routereplay_backpressure_total",
            "Bodies that were refused before they were read, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.files_in_order = Gauge(
            "routereplay_files_in_order",
            "1 if the key file and the certificates are as they should be, else 0.",
            registry=self.registry,
        )
        self.files_in_order.set(1)
        self.waiting = Gauge(
            "routereplay_waiting_requests", "Reads that wait for a seal.", registry=self.registry
        )
        self.events_lost = Counter(
            "routereplay_journal_events_lost_total",
            "Recent events that are missing on the page; no routes are.",
            registry=self.registry,
        )

        self.records = Counter(
            "routereplay_records_total",
            "Choices by how they ended: sealed, incomplete, invalid or dropped.",
            ["outcome"],
            registry=self.registry,
        )
        self.sealed_rows = Counter(
            "routereplay_sealed_rows_total", "Rows of sealed choices.", registry=self.registry
        )
        self.sealed_bytes = Counter(
            "routereplay_sealed_bytes_total", "Bytes of these rows.", registry=self.registry
        )
        info = Gauge(
            "routereplay_info", "1, with the version.", ["version"], registry=self.registry
        )
        info.labels(package_version()).set(1)

        # A series that begins with its first event has no growth that an alert could see.
        for outcome in ("sealed", "incomplete", "invalid", "dropped"):
            self.records.labels(outcome)
        for error in HTTP_STATUS:
            self.errors.labels(error.code)
            self.refused.labels(error.code)

    def ended(self, frame: Frame, outcome: FrameResult) -> None:
        """Count what a seal or a drop made of a choice."""
        match frame.header:
            case Seal(manifest=manifest) if outcome.status == "sealed":
                good = "sealed" if manifest.complete else "incomplete"
                self.records.labels("invalid" if manifest.invalid else good).inc()
                self.sealed_rows.inc(manifest.rows)
                self.sealed_bytes.inc(manifest.rows * manifest.row_nbytes)
            case Drop() if outcome.status == "noted":
                self.records.labels("dropped").inc()

    def snapshot(self) -> dict[str, float]:
        """Return every counter and gauge, summed over its labels but `status` and `code`.

        A sample with such a label is named `metric{label}`.
        """
        found: dict[str, float] = {}
        for family in self.registry.collect():
            if family.type not in ("counter", "gauge"):
                continue
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                by = sample.labels.get("status") or sample.labels.get("code")
                name = sample.name if by is None else f"{sample.name}{{{by}}}"
                found[name] = found.get(name, 0.0) + sample.value
        return found

    def render(self) -> bytes:
        """Return the metrics in the Prometheus text format."""
        text: bytes = generate_latest(self.registry)
        return text
