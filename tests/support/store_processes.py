"""The sidecar and Debian's Redis as child processes, and a way to look into the engine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import redis

from support.ports import free_port

START_TIMEOUT_S = 30.0


def until(condition, timeout_s=10.0, every_s=0.05):
    """Return the first true value of `condition`, or fail."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(every_s)
    raise AssertionError(f"not true within {timeout_s} s: {condition}")


def find_redis_server() -> str | None:
    """Debian's redis-server, from $ROUTEREPLAY_TEST_REDIS_SERVER or PATH."""
    return os.environ.get("ROUTEREPLAY_TEST_REDIS_SERVER") or shutil.which("redis-server")


class DebianRedis:
    """redis-server on a unix socket in `folder`; killed and started at will."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._folder = folder
        self._arguments = arguments
        self._process: subprocess.Popen | None = None
        self.path = str(folder / "redis.sock")
        self.url = f"unix://{self.path}"

    def start(self) -> None:
        environment = dict(os.environ)
        libraries = environment.get("ROUTEREPLAY_TEST_REDIS_LIBRARIES")
        if libraries:
            environment["LD_LIBRARY_PATH"] = libraries
        command = [find_redis_server(), "--port", "0", "--unixsocket", self.path, "--save", ""]
        command += ["--dir", str(self._folder), "--appendonly", "yes", "--appendfsync", "no"]
        command += self._arguments
        with (self._folder / "redis.log").open("a") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        until(lambda: answers(self.path))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Sidecar:
    """`python -m routereplay.sidecar` on a free port, with settings as keywords.

    Args:
        folder: of its data and its log.
        program: arguments of Python in place of `-m routereplay.sidecar`.
    """

    def __init__(self, folder: Path, *, program: Sequence[str] = (), **settings: object) -> None:
        self._folder = folder
        self._program = program or ("-m", "routereplay.sidecar")
        self._settings = settings
        self._process: subprocess.Popen | None = None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, wait: bool = True) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ROUTEREPLAY_")}
        settings = {"port": self.port, "data_dir": self._folder / "data", **self._settings}
        environment |= {f"ROUTEREPLAY_{k.upper()}": str(v) for k, v in settings.items()}
        # The embedded engine's private folder lands where the tests can find its socket.
        environment["TMPDIR"] = str(self._folder)
        with (self._folder / "sidecar.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._program],
                env=environment,
                stdout=log,
                stderr=log,
            )
        if wait:
            until(self.is_alive, START_TIMEOUT_S)

    def is_alive(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise AssertionError(f"the sidecar ended: {self.log()}")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/livez").status_code == 200
        return False

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz").status_code == 200
        return False

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        code = self._process.wait(timeout_s)
        self._process = None
        return code

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(40)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def log(self) -> str:
        return (self._folder / "sidecar.log").read_text()

    def embedded_socket(self) -> str:
        (path,) = self._folder.glob("routereplay-*/engine.sock")
        return str(path)


def answers(path: str) -> bool:
    """Whether an engine answers on a unix socket."""
    client = redis.Redis(unix_socket_path=path, protocol=2)
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False
    finally:
        client.close()
