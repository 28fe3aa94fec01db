"""Child processes of a measurement, and the CPU time that they and we used."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

START_TIMEOUT_S = 60.0


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pids: Mapping[str, list[int]]) -> dict[str, float]:
    """Return on-CPU seconds of each group of processes: all threads, by the scheduler's account."""
    return {name: sum(map(_of_process, group)) for name, group in pids.items()}


def _of_process(pid: int) -> float:
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.scandir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total += int(Path(thread.path, "schedstat").read_text().split()[0])
    return total / 1e9


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.scandir(f"/proc/{parent}/task"):
                found += map(int, Path(thread.path, "children").read_text().split())
    return found


def peak_rss(pid: int) -> int:
    """Return the largest resident size that a process had so far, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    msg = f"process {pid} has no VmHWM"
    raise RuntimeError(msg)


def rss(pid: int) -> int:
    """Return the resident size of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def steal_share(before: list[int]) -> float:
    """Return the share of CPU time that the hypervisor took since `before`."""
    spent = [now - then for now, then in zip(cpu_ticks(), before, strict=True)]
    return spent[7] / max(sum(spent[:8]), 1)


def cpu_ticks() -> list[int]:
    """Return the first line of /proc/stat."""
    return [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]


@contextlib.contextmanager
def server(arguments: list[str], port: int, **environment: str) -> Iterator[int]:
    """Run `python ARGUMENTS` until it listens on `port`; yield its process id."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ROUTEREPLAY_")}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=inherited | environment, stdout=log, stderr=log
        )
        try:
            _until_listening(process, port, log)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until_listening(process: subprocess.Popen[bytes], port: int, log: object) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    log.seek(0)  # type: ignore[attr-defined]
    msg = f"the server did not start: {log.read()[-2000:].decode(errors='replace')}"  # type: ignore[attr-defined]
    raise RuntimeError(msg)
