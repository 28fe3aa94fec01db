"""Nothing that the recorder does may reach vLLM as an exception."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class QuietLogger:
    """Logs at most one line in `every_s` seconds and says how many it kept back."""

    def __init__(self, logger: logging.Logger, every_s: float = 10.0) -> None:
        self._logger = logger
        self._every_s = every_s
        self._next_at = 0.0
        self._kept_back = 0

    def warning(self, message: str, *args: object, error: BaseException | None = None) -> None:
        """Log a warning, with the traceback of `error` if given."""
        now = time.monotonic()
        if now < self._next_at:
            self._kept_back += 1
            return
        suffix = f" ({self._kept_back} more since the last line)" if self._kept_back else ""
        self._next_at, self._kept_back = now + self._every_s, 0
        self._logger.warning(message + suffix, *args, exc_info=error)


class Guard:
    """Runs the recorder's own code for vLLM: counts errors, and switches off after too many.

    Args:
        logger: where errors are logged.
        on_error: called for each error.
        on_trip: called once, when the guard switches off.
        limit: consecutive errors after which nothing is tried any more.
    """

    def __init__(
        self,
        logger: logging.Logger,
        on_error: Callable[[], None],
        on_trip: Callable[[], None],
        limit: int = 5,
    ) -> None:
        self._logger = logger
        self._quiet = QuietLogger(logger)
        self._on_error = on_error
        self._on_trip = on_trip
        self._limit = limit
        self._consecutive = 0
        self.tripped = False

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return `call(...)`, or None when it raised or the guard is off."""
        if self.tripped:
            return None
        try:
            result = call(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the one place: serving goes on whatever happens
            self._failed(error)
            return None
        self._consecutive = 0
        return result

    def _failed(self, error: Exception) -> None:
        self._consecutive += 1
        self._on_error()
        if self._consecutive < self._limit:
            self._quiet.warning(
                "route recorder failed; serving is not affected: %s", error, error=error
            )
            return
        self.tripped = True
        self._logger.error(
            "route recorder is off after %d errors in a row; vLLM goes on without it. "
            "Restart the server to record again. Last error: %s",
            self._consecutive,
            error,
            exc_info=error,
        )
        try:
            self._on_trip()
        except Exception:
            self._logger.exception("route recorder could not report what it lost")
