"""The process of one rank: `python -m routereplay.parity.rank_process FOLDER RANK BEGIN`.

Before anything that could wait for another rank it makes sure that a rank that waits for
ever can be asked where: `STACKS` prints the Python stack of every thread to its log.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
from pathlib import Path

STACKS = signal.SIGUSR1
"""Sent to a rank that is out of time, before it is killed."""


def answer_stacks() -> None:
    """Print the stack of every thread when `STACKS` comes, and when the process crashes."""
    faulthandler.enable(all_threads=True)
    faulthandler.register(STACKS, all_threads=True)


def main(folder: Path, rank: int, begin: float) -> None:
    """Answer `STACKS`, then be the rank."""
    answer_stacks()
    # Only now: the imports take seconds, and groups can hang.
    from routereplay.parity import megatron_rank
    from routereplay.parity.stages import Stages

    stages = Stages(begin)
    stages.reach("imported")
    megatron_rank.main(folder, rank, stages)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
