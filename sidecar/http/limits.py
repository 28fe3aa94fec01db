"""What a connection may take: time, header bytes, and a least rate both ways."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of every connection; uvicorn itself has only the one between requests."""

    head_s: float = 10.0
    """From the first byte of a request, or from connecting, to the end of its headers."""
    stall_s: float = 10.0
    """What a body, or the reading of a response, may lag behind `min_bytes_per_s`."""
    min_bytes_per_s: float = 64.0 * KIB
    """Least average rate of a body and of a client that reads a response."""
    head_bytes: int = 16 * KIB
    """Request line and headers."""
    head_fields: int = 100
    """Headers of one request."""
    unwanted_bytes: int = 64 * 1024 * KIB
    """Body that is still read, and thrown away, after its request has been answered."""
    max_connections: int = 1024
    """Open connections; one more is answered 503 and closed."""

    def due(self, started: float, nbytes: int) -> float:
        """Return until when more than `nbytes` must have passed since `started`."""
        return started + self.stall_s + nbytes / self.min_bytes_per_s
