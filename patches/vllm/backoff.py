"""When a store that failed may be tried again."""

from __future__ import annotations

import random

_FAILURES_TO_OPEN = 5


class Breaker:
    """Exponential backoff with full jitter (AWS Architecture Blog, 2015), and a breaker on it.

    After five failures in a row it is open: what waits should not wait in memory, and the
    next try is a probe with as little as possible. One success closes it.

    Args:
        ceiling_s: longest pause between two tries.
        first_s: longest pause after the first failure; it doubles with each.
    """

    def __init__(self, ceiling_s: float = 30.0, first_s: float = 0.2) -> None:
        self._ceiling_s = ceiling_s
        self._first_s = first_s
        self.failures = 0
        """In a row."""
        self._not_before = 0.0
        self._random = random.Random()

    @property
    def open(self) -> bool:
        """Whether the store is taken to be away."""
        return self.failures >= _FAILURES_TO_OPEN

    def may_try(self, now: float) -> bool:
        """Whether the pause is over; `now` in monotonic seconds."""
        return now >= self._not_before

    def succeeded(self) -> None:
        """The store took something."""
        self.failures = 0
        self._not_before = 0.0

    def failed(self, now: float, retry_after_s: float = 0.0) -> None:
        """One more failure; the pause is never shorter than what the store asked for."""
        longest = min(self._ceiling_s, self._first_s * 2 ** min(self.failures, 16))
        self.failures += 1
        self._not_before = now + max(self._random.uniform(0, longest), retry_after_s)

    def hurry(self) -> None:
        """Try again at once: the process is ending."""
        self._not_before = 0.0
