"""A server as a child process: started, awaited, ended with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from routereplay.parity.errors import EngineFailed


class ServerFailed(EngineFailed):
    """The server ended, or was not ready in time; the message ends with its last lines."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ChildServer:
    """An HTTP server on 127.0.0.1, as a context manager.

    Args:
        command: what to run.
        port: where it listens.
        log_path: where its output goes; appended to, so that a restart keeps it.
        environment: all of its variables.
        ready_path: answers 200 once the server is ready.
        ready_timeout_s: how long start-up may take.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        log_path: Path,
        environment: Mapping[str, str],
        ready_path: str,
        ready_timeout_s: float,
    ) -> None:
        self.port = port
        self.log_path = log_path
        self._command = list(command)
        self._environment = dict(environment)
        self._ready_path = ready_path
        self._ready_timeout_s = ready_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        if self._process is None:
            msg = "the server is not running: enter it as a context manager first"
            raise RuntimeError(msg)
        return self._process.pid

    def start(self) -> Self:
        """Start it and wait until it is ready.

        Raises:
            ServerFailed: it ended, or was not ready in time.
        """
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                # A group of its own, so that what it starts ends with it.
                start_new_session=True,
            )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, timeout_s: float = 20.0) -> None:
        """Ask it to end, and make sure of it; its whole process group is gone after."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        begin = time.monotonic()
        with httpx.Client(base_url=self.base_url, trust_env=False, timeout=2.0) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if client.get(self._ready_path).status_code == 200:
                        return
                waited = time.monotonic() - begin
                if (status := process.poll()) is not None:
                    what = f"ended with status {status} before it was ready"
                    raise self._failed(what)
                if waited > self._ready_timeout_s:
                    what = f"was not ready after {waited:.0f} s"
                    raise self._failed(what)
                time.sleep(0.2)

    def _failed(self, what: str, lines: int = 30) -> ServerFailed:
        text = self.log_path.read_text(errors="replace")
        tail = "\n".join(text.splitlines()[-lines:])
        return ServerFailed(
            f"{' '.join(self._command[1:4])} {what}\n--- end of {self.log_path} ---\n{tail}"
        )
