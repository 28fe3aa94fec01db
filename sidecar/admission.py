"""Who may take how much at one time: decided before the first byte of a body is read."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from routereplay.sidecar.auth.principal import ANYONE, Principal
from routereplay.sidecar.metrics import Metrics
from routereplay.sidecar.settings import Settings
from routereplay.wire.errors import RateLimited, StoreUnavailable


class Admission:
    """Counts open requests and the bodies in memory, of all and of each API key.

    A store without keys has one caller, and for that one only the limits of all count.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._bytes = 0
        self._bytes_of: Counter[str] = Counter()
        self._requests_of: Counter[str] = Counter()

    @contextlib.contextmanager
    def request_of(self, principal: Principal) -> Iterator[None]:
        """Count a request while it is open, or raise `RateLimited`."""
        most = self._settings.max_key_requests
        if principal is not ANYONE and self._requests_of[principal.key_id] >= most:
            self._metrics.backpressure.labels("key_requests").inc()
            msg = f"API key {principal.key_id} has {most} requests open, as many as one may"
            raise RateLimited(msg)
        self._requests_of[principal.key_id] += 1
        try:
            yield
        finally:
            self._take_back(self._requests_of, principal, 1)

    @contextlib.contextmanager
    def room_for(self, nbytes: int, principal: Principal) -> Iterator[None]:
        """Reserve memory for a body, or raise before any of it is read.

        Raises:
            RateLimited: the key's bodies take what one key's may.
            StoreUnavailable: all bodies together take what they may.
        """
        settings = self._settings
        held = self._bytes_of[principal.key_id]
        if principal is not ANYONE and held and held + nbytes > settings.max_key_inflight_bytes:
            self._metrics.backpressure.labels("key_bytes").inc()
            msg = (
                f"{held} bytes of API key {principal.key_id} are being read and at most "
                f"{settings.max_key_inflight_bytes} of one key may be"
            )
            raise RateLimited(msg)
        if self._bytes and self._bytes + nbytes > settings.max_inflight_bytes:
            self._metrics.backpressure.labels("bytes").inc()
            msg = (
                f"{self._bytes} bytes of bodies are being read and at most "
                f"{settings.max_inflight_bytes} may be; send again shortly"
            )
            raise StoreUnavailable(msg)
        self._add(nbytes, principal)
        try:
            yield
        finally:
            self._add(-nbytes, principal)

    def _add(self, nbytes: int, principal: Principal) -> None:
        self._bytes += nbytes
        self._metrics.inflight_bytes.set(self._bytes)
        self._take_back(self._bytes_of, principal, -nbytes)

    @staticmethod
    def _take_back(held: Counter[str], principal: Principal, count: int) -> None:
        held[principal.key_id] -= count
        if not held[principal.key_id]:
            # Keys come and go: what is not in use is not remembered.
            del held[principal.key_id]
