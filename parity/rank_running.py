"""Start the ranks of a scoring job, wait for them, and tell what became of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from routereplay.parity.errors import EngineFailed
from routereplay.parity.rank_process import STACKS
from routereplay.parity.topology import Topology

_LINES = 40
_STACK_LINES = 160
_STACKS_S = 2.0
"""How long ranks that are out of time may take to print where they are."""


def run_ranks(
    topology: Topology,
    folder: Path,
    timeout_s: float,
    *,
    module: str = "routereplay.parity.rank_process",
) -> None:
    """Run one process a rank over the job that lies in `folder` until all have ended.

    Args:
        module: what a rank runs, with the folder, its rank and the time of its start.

    Raises:
        EngineFailed: a rank ended with an error, with the last lines of who failed first; or
            the time is up, with the last lines and the stacks of every rank.
    """
    logs = [folder / f"rank-{rank}.log" for rank in range(topology.world_size)]
    processes = [
        _start(module, folder, rank, path, topology.world_size) for rank, path in enumerate(logs)
    ]
    deadline = time.monotonic() + timeout_s
    late = False
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                break
            if late := time.monotonic() > deadline:
                _ask_where(processes)
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    if late:
        tails = [f"rank {rank}:\n{_tail(log, _STACK_LINES)}" for rank, log in enumerate(logs)]
        msg = (
            f"Megatron ({topology}) did not end within {timeout_s:g} s; last lines of "
            + "\n".join(tails)
        )
        raise EngineFailed(msg, topology=str(topology))
    if any(codes):
        rank = next(rank for rank, code in enumerate(codes) if code)
        # Those that were killed here for another's error have nothing to say.
        blamed = next((rank for rank, code in enumerate(codes) if code > 0), rank)
        msg = (
            f"Megatron ({topology}) ended with {codes}; last lines of rank {blamed}:\n"
            f"{_tail(logs[blamed], _LINES)}"
        )
        raise EngineFailed(msg, topology=str(topology))


def _start(
    module: str, folder: Path, rank: int, log_path: Path, world_size: int
) -> subprocess.Popen[bytes]:
    # Ranks whose threads are more than the cores spin, and take minutes for seconds of work.
    threads = min(max((os.cpu_count() or 1) // (2 * world_size), 1), 8)
    with log_path.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(folder), str(rank), str(time.time())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
        )


def _ask_where(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(STACKS)
    time.sleep(_STACKS_S)


def _tail(log_path: Path, lines: int) -> str:
    return "\n".join(log_path.read_text(errors="replace").splitlines()[-lines:])
