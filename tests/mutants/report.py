"""docs/mutants.md from the results of one run: `python -m mutants.report RESULTS > FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

_HEAD = """# Mutants

Every way in which routes are known to go wrong in silence, applied to right routes at each station
of their way, and what noticed it. `./scripts/mutants` makes this page; the mutations are in
`tests/mutants`, a short set of them runs in `./scripts/test`.

The routes are a real Megatron-Core model's own choice. They pass the real recorder, a real store,
the client, stitch and pack, and are replayed by the same model with full recompute; a mutant takes
the place of one station. It counts as caught if an error ends the step before its gradient can be
applied. *Seen in* names where others met it.

What no input of a trainer can cause is held by `test_peer_bugs.py` and `test_mutations.py` in
`tests/e2e/megatron_replay`: routes of another microbatch at recompute, gates gathered from masked
scores (Megatron-LM#79), routers that nobody runs (verl#7340), draft layers that take the backbone's
routes (NeMo-RL#3903), near-ties that flip at recompute (Automodel#3156). Not covered: padding for
FP8 in the replayed path (verl#5989); it needs Transformer Engine. The canary does not see a part of
the rows that is less than a tenth of those compared and in no stretch of its own.

"""
_COLUMNS = """
| station | mutation | caught by | what it says | seen in |
|---|---|---|---|---|
"""
_STATIONS = {
    "engine": "engine: what vLLM hands to the recorder",
    "wire": "wire: between recorder and store",
    "store": "store: what lies in the engine behind it",
    "stitch": "stitch: turns as they were fetched",
    "tokens": "stitch: the trainer's tokens",
    "pack": "pack: the batch",
    "placement": "placement: the row ids of a rank",
    "replay": "replay: the training step",
}
_LONGEST = 150


def page(lines: list[str]) -> str:
    """Return the document of a run's results, a JSON object a line."""
    found = [json.loads(line) for line in lines]
    right = next(one for one in found if one["station"] == "none")
    mutants = [one for one in found if one["station"] != "none"]
    escaped = [one for one in mutants if one["caught"] is None]
    caught = len(mutants) - len(escaped)
    summary = (
        f"**{len(mutants)} mutants, {caught} caught, {len(escaped)} escaped.** "
        f"The routes as they were pass: {right['caught'] is None}.\n"
    )
    return _HEAD + summary + _COLUMNS + "".join(_row(one) for one in mutants)


def _row(one: dict) -> str:
    caught = one["caught"]
    by = "**nothing**" if caught is None else f"`{caught['error']}`"
    cells = (_STATIONS[one["station"]], one["mutation"], by, _said(caught), one["seen"])
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


def _said(caught: dict | None) -> str:
    if caught is None:
        return ""
    words = " ".join(caught["message"].split())
    return words if len(words) <= _LONGEST else words[:_LONGEST].rsplit(" ", 1)[0] + " ..."


if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
