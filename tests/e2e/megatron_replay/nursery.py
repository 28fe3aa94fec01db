"""Ranks as forks of a process that has imported Megatron-Core once and done nothing else.

A start of torch and Megatron-Core takes seconds of a core, and every layout needs several
processes. Forked before there are process groups or threads, they start at once.
"""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

LONGEST_S = 280


class Nursery:
    """The idle process; `run` lets it fork ranks, waits for them and ends what hangs."""

    def __init__(self):
        requests, self._send = os.pipe()
        self._receive, answers = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            os.close(self._send)
            os.close(self._receive)
            _serve(requests, answers)
            os._exit(0)
        os.close(requests)
        os.close(answers)

    def run(self, world_size, folder, cases):
        """Return the exit status of every rank of `ranks.main`."""
        os.write(self._send, json.dumps([world_size, folder, cases]).encode() + b"\n")
        return json.loads(_line(self._receive))

    def close(self):
        os.close(self._send)
        os.close(self._receive)
        os.waitpid(self._process, 0)


def _serve(requests, answers):
    while request := _line(requests):
        world_size, folder, cases = json.loads(request)
        children = [_fork_rank(rank, world_size, Path(folder), cases) for rank in range(world_size)]
        statuses = _wait(children)
        os.write(answers, json.dumps(statuses).encode() + b"\n")


def _fork_rank(rank, world_size, folder, cases):
    if child := os.fork():
        return child
    status = 1
    try:
        log = os.open(folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
        import ranks

        ranks.main(rank, world_size, folder, cases)
        status = 0
    except BaseException:  # noqa: BLE001  the log is all that is left of a fork
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _wait(children):
    """A rank that fails leaves the others waiting for it: all end then, or at the deadline."""
    statuses, deadline = dict.fromkeys(children), time.monotonic() + LONGEST_S
    while waiting := [child for child, status in statuses.items() if status is None]:
        for child in waiting:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                statuses[child] = os.waitstatus_to_exitcode(status)
        if any(statuses.values()) or time.monotonic() > deadline:
            for child in (child for child, status in statuses.items() if status is None):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return list(statuses.values())


def _line(pipe):
    read = b""
    while not read.endswith(b"\n"):
        part = os.read(pipe, 65536)
        if not part:
            return None
        read += part
    return read
