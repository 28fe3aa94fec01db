"""Which failures are worth another try, and how long to pause before it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from routereplay.wire.errors import RETRYABLE_CODES, RouteReplayError, TransportError

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


def pauses(attempts: int) -> Iterator[float]:
    """Yield the pause after each failed attempt but the last: exponential, full jitter."""
    for attempt in range(attempts - 1):
        yield random.uniform(0.0, min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S))


def is_retryable(error: RouteReplayError) -> bool:
    """Tell whether the same call may succeed later. Every call of this client is idempotent."""
    return isinstance(error, TransportError) or error.code in RETRYABLE_CODES
