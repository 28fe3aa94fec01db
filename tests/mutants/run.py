"""Run mutants and say what noticed them: `python -m mutants.run RESULTS [--short]`.

Writes one JSON object a line. A mutant that nothing noticed has `caught` null.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from support.route_store import running_store

from mutants import at_engine, at_trainer, on_the_way  # noqa: F401 - they fill the list
from mutants.registry import MUTANTS, Mutant
from mutants.world import Hooks, World, run
from routereplay.parity.megatron_cpu import megatron_on_cpu, single_process_groups
from routereplay.wire.errors import RouteReplayError


def main(path: Path, *, short: bool) -> None:
    """Run the right routes, which must pass, and then every mutant."""
    logging.disable(logging.WARNING)  # The recorder says what it lost; the results say it too.
    chosen = [mutant for mutant in MUTANTS if mutant.short or not short]
    with (
        tempfile.TemporaryDirectory() as name,
        running_store("embedded", Path(name)) as store,
        megatron_on_cpu(),
        single_process_groups(),
        path.open("w") as results,
    ):
        world = World(Path(name))
        right = Mutant("nothing changed", "none", Hooks())
        for number, mutant in enumerate([right, *chosen]):
            begin = time.monotonic()
            caught = outcome(world, store, mutant, number)
            line = {
                "mutation": mutant.mutation,
                "station": mutant.station,
                "seen": mutant.seen,
                "caught": caught,
                "seconds": round(time.monotonic() - begin, 2),
            }
            results.write(json.dumps(line) + "\n")
            results.flush()


def outcome(world: World, store, mutant: Mutant, number: int) -> dict | None:
    """Return what noticed a mutant, or None."""
    try:
        run(world, store, mutant.hooks, f"m{number}")
    except RouteReplayError as error:
        return {"error": type(error).__name__, "code": error.code, "message": error.message}
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]), short="--short" in sys.argv)
