"""What one fault test found, and where it is written for the report."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

LONGEST_RATIO = 2.0
"""Of a step's p99 with a recorder over without, in one row: two busy cores make single rows noisy,
all rows together are what the report goes by."""


def p99_ms(counts: dict[int, int]) -> float:
    """The 99th percentile of steps that are counted by tens of microseconds."""
    left = 0.01 * sum(counts.values())
    for length in sorted(counts, reverse=True):
        left -= counts[length]
        if left < 0:
            return length / 100
    raise ValueError("no steps")


@dataclass
class Verdict:
    """A row of docs/faults.md. A test fills it in; `lost` and `wrong` must end as 0."""

    row: str
    """Id of the row in the matrix, such as `A1`."""
    fault: str
    injected: str
    """By what means, such as `SIGSTOP` or `tmpfs of 8 MB`."""
    load: str = ""
    """What was going on meanwhile, such as `60 requests/s, 4 MB/s`."""
    acked: int = 0
    """Records that were acknowledged in a class that promises to survive the fault."""
    lost: int = 0
    """... and could not be read afterwards."""
    wrong: int = 0
    """Reads that returned other bytes than were stored."""
    recovery_s: float | None = None
    """From the end of the fault to the first success; None where nothing had to recover."""
    note: str = ""
    """What else was measured."""
    with_recorder: dict[int, int] = field(default_factory=dict)
    """Steps of engine loops by their length, in tens of microseconds."""
    without_recorder: dict[int, int] = field(default_factory=dict)
    """... and of their twins, at the same time on the same machine."""

    def compare(self, steps: tuple[list[float], list[float]] | None) -> None:
        """Add the steps of a loop and of its twin."""
        for counts, found in zip(
            (self.with_recorder, self.without_recorder), steps or (), strict=False
        ):
            for micros in found:
                counts[int(micros / 10)] = counts.get(int(micros / 10), 0) + 1

    def write(self, outcome: str, reason: str = "") -> None:
        """Append it to the file named by `ROUTEREPLAY_FAULTS_RESULTS`, if there is one.

        Args:
            outcome: `passed`, `failed` or `skipped`.
            reason: why it was skipped.
        """
        path = os.environ.get("ROUTEREPLAY_FAULTS_RESULTS")
        if path:
            line = json.dumps({**asdict(self), "outcome": outcome, "reason": reason})
            with Path(path).open("a", encoding="utf-8") as results:
                results.write(line + "\n")
