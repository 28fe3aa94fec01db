"""Every topology against one process, and every deliberate fault, as a table.

Exits with 1 if a topology is not what one process is, or a fault is not seen.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from e2e.megatron_replay.conftest import Worker, release_folders
from e2e.megatron_replay.distance import Distance, distance_of, limit_of
from e2e.megatron_replay.layouts import (
    COMBINED,
    COMBINED_CASES,
    EVERY_CASE,
    FAULTS,
    LAYOUTS,
    MISTAKES,
    NEWEST_CASES,
)


def run(worker, cases, world_size, folder):
    """Return case -> facts of its ranks."""
    folder.mkdir()
    worker.run("nursery.run", world_size=world_size, folder=str(folder), cases=cases)
    return {
        case: [json.loads((folder / f"{case}-{r}.json").read_text()) for r in range(world_size)]
        for case in cases
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--release", default="0.19.2", help="of Megatron-Core")
    release = parser.parse_args().release
    with tempfile.TemporaryDirectory() as name:
        worker = Worker(release_folders()[release], Path(name) / "worker.log")
        found = run(worker, EVERY_CASE + NEWEST_CASES, 2, Path(name) / "pairs")
        found |= run(worker, COMBINED_CASES, 4, Path(name) / "fours")
        worker.close()
    layouts = LAYOUTS | COMBINED | MISTAKES | FAULTS
    print(f"Megatron-Core {worker.release}, float32, largest differences from one process\n")
    print(f"{'topology@recompute@routes':52}" + "".join(f"{name:>10}" for name in Distance._fields))
    wrong = []
    for case, ranks in found.items():
        layout = layouts[case.split("@")[0]]
        if layout.scores_only:
            continue
        distance = distance_of(ranks)
        over = distance.over(limit_of(layout))
        meant = layout.mistake or layout.fault
        verdict = f"seen by {', '.join(over)}" if meant else ", ".join(over)
        print(f"{case:52}" + "".join(f"{value:10.1e}" for value in distance) + f"  {verdict}")
        if bool(over) != bool(meant):
            wrong.append(case)
    print(f"\n{len(found)} cases, {len(wrong)} not as they must be: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
