"""What one fault test found, and where it is written for the report."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


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
