"""What a server does while a load runs, as py-spy sees it from outside."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from serving_gpu.servers import Server


@contextlib.contextmanager
def recorded(server: Server, out: Path) -> Iterator[None]:
    """Sample all threads of the server's processes; writes collapsed stacks to `out`."""
    command = ["py-spy", "record", "--subprocesses", "--threads", "--nonblocking"]
    command += ["--rate", "200", "--format", "raw", "--output", str(out)]
    spy = subprocess.Popen([*command, "--pid", str(server.process.pid)])
    try:
        yield
    finally:
        spy.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            spy.wait(30)
