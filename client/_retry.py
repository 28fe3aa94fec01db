"""Which failures are worth another try, and how long to pause before it."""

from __future__ import annotations

import random
import time

from routereplay.wire.errors import (
    RETRYABLE_CODES,
    RouteReplayError,
    TransportError,
    WireError,
)

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_LONGEST_RETRY_AFTER_S = 60.0


class Retry:
    """The tries of one call: exponential backoff with full jitter, and an end.

    Args:
        attempts: how often it is tried.
        deadline_s: no try begins later than this after the first one; None is no limit.
    """

    def __init__(self, attempts: int, deadline_s: float | None) -> None:
        self._left = attempts - 1
        self._longest_s = _FIRST_PAUSE_S
        self._give_up_at = None if deadline_s is None else time.monotonic() + deadline_s

    def pause_after(self, error: RouteReplayError, *, answered: bool) -> float:
        """Return how long to wait before the next try, or raise `error`: there is none.

        Args:
            error: why the last one failed.
            answered: an answer came, and its bytes are wrong: they were damaged on their
                way, as the store compares digests before it sends anything.
        """
        if not (is_retryable(error) or (answered and isinstance(error, WireError))):
            raise error
        pause_s = random.uniform(0.0, min(self._longest_s, _LONGEST_PAUSE_S))
        pause_s = max(pause_s, min(error.retry_after_s, _LONGEST_RETRY_AFTER_S))
        is_late = self._give_up_at is not None and time.monotonic() + pause_s > self._give_up_at
        if self._left <= 0 or is_late:
            raise error
        self._left -= 1
        self._longest_s *= 2
        return pause_s


def is_retryable(error: RouteReplayError) -> bool:
    """Tell whether the same call may succeed later. Every call of this client is idempotent."""
    return isinstance(error, TransportError) or error.code in RETRYABLE_CODES


def retry_after_s(header: str | None) -> float:
    """Return the seconds of a Retry-After header, 0 without one."""
    # Not `isdigit`, which takes a superscript for a number.
    return float(header) if header and header.isdecimal() else 0.0
