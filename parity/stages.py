"""Where a rank is: said in its log as it gets there, and kept for whoever asks later."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec


class Stages:
    """Times of a process by the names of what it had done by then.

    Args:
        begin: `time.time()` at which it was started, so that its imports count.
    """

    def __init__(self, begin: float) -> None:
        self._begin = begin
        self.reached: dict[str, float] = {}
        """Seconds after `begin`, by name, in order."""

    def reach(self, name: str) -> None:
        """Keep the time, and say it."""
        seconds = self.reached[name] = round(time.time() - self._begin, 2)
        sys.stdout.write(f"[{seconds:7.2f} s] pid {os.getpid()}: {name}\n")
        sys.stdout.flush()

    def save(self, path: Path) -> None:
        """Write what was reached as JSON."""
        path.write_bytes(msgspec.json.encode(self.reached))


def load_stages(path: Path) -> dict[str, float]:
    """Read what `Stages.save` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, float])
