"""The process of vLLM that computes: found below a server, and held still."""

import contextlib
import os
import signal
from pathlib import Path


def engine_core_of(server_pid):
    """Process id of the engine core that a server's front end started."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == server_pid and b"EngineCore" in (entry / "cmdline").read_bytes():
                return int(entry.name)
    msg = f"no engine core below process {server_pid}"
    raise LookupError(msg)


def worker_below(server_pid):
    """Process id of a worker among all that a server has started, however deep."""
    parents, titles = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(entry.name)
            parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            titles[pid] = (entry / "cmdline").read_bytes()
    for pid, title in titles.items():
        above = pid
        while above in parents and above != server_pid:
            above = parents[above]
        if above == server_pid and b"Worker" in title:
            return pid
    msg = f"no worker below process {server_pid}"
    raise LookupError(msg)


@contextlib.contextmanager
def held_still(pid):
    """Stop a process inside, so that nothing of it can end while it is looked at."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
