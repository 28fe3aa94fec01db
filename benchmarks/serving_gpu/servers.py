"""The servers of a run: vLLM in a mode, and the route store."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

MODES = ("off", "json", "routereplay")


class Server:
    """A child process group that listens on 127.0.0.1."""

    def __init__(
        self, name: str, arguments: list[str], port: int, probe: str, log: Path, **env: str
    ) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.is_asleep = False
        self._probe = f"{self.url}{probe}"
        self._started = time.monotonic()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ROUTEREPLAY_")}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                env=inherited | env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, timeout_s: float) -> float:
        """Return the seconds that it took to answer, or raise with the end of its log."""
        while time.monotonic() - self._started < timeout_s and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(self._probe, timeout=2):
                return time.monotonic() - self._started
            time.sleep(0.5)
        msg = f"{self.name} does not answer: {self.log.read_text(errors='replace')[-4000:]}"
        raise RuntimeError(msg)

    def stop(self) -> None:
        """End the whole group."""
        for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                return


def vllm(mode: str, port: int, model: Path, store_url: str, given: list[str], logs: Path) -> Server:
    """Start vLLM in a mode with the arguments given; the modes differ in nothing else."""
    arguments = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    arguments += ["--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--load-format", "dummy", "--dtype", "bfloat16"]
    arguments += ["--max-model-len", "20480", "--max-num-seqs", "256", *given]
    if mode == "json":
        arguments.append("--enable-return-routed-experts")
    env = {"VLLM_SERVER_DEV_MODE": "1"}  # The endpoints that turns need.
    if mode == "routereplay":
        # vLLM's dummy weights are the same in every layer, and so are its routes: the canary
        # rightly takes them for no routes at all.
        env |= {"ROUTEREPLAY_STORE_URL": store_url, "ROUTEREPLAY_CANARY": "off"}
        env["ROUTEREPLAY_ALLOW_UNTESTED"] = "1"
    return Server(mode, arguments, port, "/health", logs / f"vllm-{mode}.log", **env)


@contextlib.contextmanager
def store(port: int, folder: Path, logs: Path) -> Iterator[Server]:
    """Run the sidecar with the settings that a user gets."""
    folder.mkdir(parents=True, exist_ok=True)
    sidecar = Server(
        "sidecar",
        ["-m", "routereplay.sidecar"],
        port,
        "/readyz",
        logs / "sidecar.log",
        ROUTEREPLAY_PORT=str(port),
        ROUTEREPLAY_DATA_DIR=str(folder / "data"),
    )
    try:
        sidecar.wait(60)
        yield sidecar
    finally:
        sidecar.stop()
