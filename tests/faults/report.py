"""docs/faults.md from the results of one run: `python -m faults.report RESULTS > FILE`."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

from faults.verdict import p99_ms

_HEAD = """# Faults

What was done to the recorder, the store, its engine and the client, and what became of
acknowledged records. `./scripts/faults` makes this page; every row is a test in `tests/faults`.
*Acked* counts the records that the store had acknowledged in a durability class that promises to
survive the fault; *lost* and *wrong* are how many of them could not be read, or read with other
bytes, afterwards. *Recovery* is from the end of the fault to the first success, on two noisy
cores. A *step* is one of a stand-in engine loop, 5 ms long, that drives the real recorder. Its 99th
percentile stands beside that of a twin, which has the same load and no recorder and runs at the
same time on the same two cores; single rows are noisy, all of them together are not.

"""
_COLUMNS = """
| row | fault | injected by | load | acked | lost | wrong | recovery | p99 of a step | measured |
|---|---|---|---|---|---|---|---|---|---|
"""


def page(lines: list[str]) -> str:
    """Return the document of a run's results, a JSON object a line."""
    results = [json.loads(line) for line in lines]
    found = sorted((result for result in results if "row" in result), key=_order)
    drawn = [result for result in results if "fuzzed" in result]
    rows = "".join(_row(result) for result in found)
    return _HEAD + _summary(found) + _COLUMNS + rows + _fuzz(drawn)


def _fuzz(drawn: list[dict]) -> str:
    if not drawn:
        return ""
    lines = ["\n## Drawn at random\n\n| what | examples | seconds | failed |\n|---|---|---|---|\n"]
    for one in drawn:
        cells = one["fuzzed"], one["examples"], f"{one['seconds']:.0f}", one["failed"]
        lines.append("| " + " | ".join(map(str, cells)) + " |\n")
    return "".join(lines)


def _summary(found: list[dict]) -> str:
    outcomes = Counter(result["outcome"] for result in found)
    sums = {name: sum(result[name] for result in found) for name in ("acked", "lost", "wrong")}
    rows = len({result["row"] for result in found if result["outcome"] == "passed"})
    return (
        f"**{rows} rows of the matrix held** in {len(found)} tests ({outcomes['passed']} passed, "
        f"{outcomes['failed']} failed, {outcomes['skipped']} skipped): {sums['acked']} records "
        f"acknowledged, {sums['lost']} lost, {sums['wrong']} wrong.\n{_all_steps(found)}"
    )


def _all_steps(found: list[dict]) -> str:
    ours, theirs = (_added(found, f"{which}_recorder") for which in ("with", "without"))
    if not ours:
        return ""
    return (
        f"\nOver {sum(ours.values())} steps with a recorder under faults and as many without, "
        f"the p99 is {_compared(ours, theirs)}.\n"
    )


def _added(found: list[dict], name: str) -> Counter[int]:
    added: Counter[int] = Counter()
    for result in found:
        added.update({int(length): count for length, count in result[name].items()})
    return added


def _compared(ours: Counter[int], theirs: Counter[int]) -> str:
    with_recorder, without = p99_ms(ours), p99_ms(theirs)
    return f"{with_recorder:.2f} / {without:.2f} ms ({with_recorder / without:.2f}x)"


def _order(result: dict) -> tuple[str, int, str]:
    letter, number = re.fullmatch(r"([A-Z])(\d+)", result["row"]).groups()
    return letter, int(number), result["injected"]


def _row(result: dict) -> str:
    seconds = result["recovery_s"]
    recovery = "" if seconds is None else f"{seconds:.1f} s"
    note = result["note"]
    ours, theirs = (_added([result], f"{which}_recorder") for which in ("with", "without"))
    steps = _compared(ours, theirs) if ours else ""
    if result["outcome"] != "passed":
        note = f"**{result['outcome']}** {result['reason']} {note}".strip()
    cells = (
        *(result["row"], result["fault"], result["injected"], result["load"]),
        *(result["acked"], result["lost"], result["wrong"], recovery, steps, note),
    )
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
