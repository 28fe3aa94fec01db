"""docs/faults.md from the results of one run: `python -m faults.report RESULTS > FILE`."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

_HEAD = """# Faults

What was done to the recorder, the store, its engine and the client, and what became of
acknowledged records. `./scripts/faults` makes this page; every row is a test in `tests/faults`.
*Acked* counts the records that the store had acknowledged in a durability class that promises to
survive the fault; *lost* and *wrong* are how many of them could not be read, or read with other
bytes, afterwards. *Recovery* is from the end of the fault to the first success, on two noisy
cores. A *step* is one of a stand-in engine loop, 5 ms long, that drives the real recorder; without
the fault the recorder also sends, so a step may be longer then.

"""
_COLUMNS = """
| row | fault | injected by | load | acked | lost | wrong | recovery | measured |
|---|---|---|---|---|---|---|---|---|
"""


def page(lines: list[str]) -> str:
    """Return the document of a run's results, a JSON object a line."""
    found = sorted((json.loads(line) for line in lines), key=_order)
    return _HEAD + _summary(found) + _COLUMNS + "".join(_row(result) for result in found)


def _summary(found: list[dict]) -> str:
    outcomes = Counter(result["outcome"] for result in found)
    sums = {name: sum(result[name] for result in found) for name in ("acked", "lost", "wrong")}
    rows = len({result["row"] for result in found if result["outcome"] == "passed"})
    return (
        f"**{rows} rows of the matrix held** in {len(found)} tests ({outcomes['passed']} passed, "
        f"{outcomes['failed']} failed, {outcomes['skipped']} skipped): {sums['acked']} records "
        f"acknowledged, {sums['lost']} lost, {sums['wrong']} wrong.\n"
    )


def _order(result: dict) -> tuple[str, int, str]:
    letter, number = re.fullmatch(r"([A-Z])(\d+)", result["row"]).groups()
    return letter, int(number), result["injected"]


def _row(result: dict) -> str:
    seconds = result["recovery_s"]
    recovery = "" if seconds is None else f"{seconds:.1f} s"
    note = result["note"]
    if result["outcome"] != "passed":
        note = f"**{result['outcome']}** {result['reason']} {note}".strip()
    cells = (
        *(result["row"], result["fault"], result["injected"], result["load"]),
        *(result["acked"], result["lost"], result["wrong"], recovery, note),
    )
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
