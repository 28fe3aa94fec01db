"""docs/faults.md from the results of one run: `python -m faults.report RESULTS > FILE`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

_HEAD = """# Faults

What was done to the recorder, the store, its engine and the client, and what became of
acknowledged records. `./scripts/faults` makes this table; every row is a test in `tests/faults`.
*Acked* counts the records that the store had acknowledged in a durability class that promises to
survive the fault; *lost* and *wrong* are how many of them could not be read, or read with other
bytes, afterwards. *Recovery* is from the end of the fault to the first success, on two noisy
cores.

| row | fault | injected by | acked | lost | wrong | recovery | held, measured |
|---|---|---|---|---|---|---|---|
"""


def table(lines: list[str]) -> str:
    """Return the document of a run's results, a JSON object a line."""
    found = sorted((json.loads(line) for line in lines), key=_order)
    return _HEAD + "".join(_row(result) for result in found)


def _order(result: dict) -> tuple[str, int, str]:
    letter, number = re.fullmatch(r"([A-Z])(\d+)", result["row"]).groups()
    return letter, int(number), result["injected"]


def _row(result: dict) -> str:
    seconds = result["recovery_s"]
    recovery = "" if seconds is None else f"{seconds:.1f} s"
    passed = "" if result["passed"] else "**FAILED** "
    cells = (
        *(result["row"], result["fault"], result["injected"]),
        *(result["acked"], result["lost"], result["wrong"], recovery, passed + result["note"]),
    )
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    sys.stdout.write(table(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
