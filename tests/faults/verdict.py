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
    acked: int = 0
    """Records that were acknowledged in a class that promises to survive the fault."""
    lost: int = 0
    """... and could not be read afterwards."""
    wrong: int = 0
    """Reads that returned other bytes than were stored."""
    recovery_s: float | None = None
    """From the end of the fault to the first success; None where nothing had to recover."""
    note: str = ""
    """The load that was held, or what else was measured."""

    def write(self, passed: bool) -> None:
        """Append it to the file named by `ROUTEREPLAY_FAULTS_RESULTS`, if there is one."""
        path = os.environ.get("ROUTEREPLAY_FAULTS_RESULTS")
        if path:
            line = json.dumps({**asdict(self), "passed": passed})
            with Path(path).open("a", encoding="utf-8") as results:
                results.write(line + "\n")
