"""A sidecar of its own, and the two that speak to it: the recorder's sender and the client."""

from __future__ import annotations

import contextlib
import os
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from route_store import data
from route_store.processes import family, free_port, server
from routereplay.client import RouteStoreClient
from routereplay.patches.vllm.sender import Answered, Sender
from routereplay.patches.vllm.settings import Settings
from routereplay.wire.digest import Buffer


class Store:
    """A running sidecar with its embedded engine."""

    def __init__(self, url: str, pid: int, folder: Path) -> None:
        self.url = url
        self.pids = {"client": [os.getpid()], "server": [pid], "store": family(pid)[1:]}
        self.client = RouteStoreClient(url, timeout_s=60)
        self._folder = folder
        self._sender = self.sender()

    @property
    def engine_path(self) -> str:
        """The engine's socket."""
        (path,) = self._folder.glob("routereplay-*/engine.sock")
        return str(path)

    def sender(self) -> Sender:
        """Return a connection for ingest."""
        return Sender(Settings(store_url=self.url, request_timeout_s=60))

    def post(self, sender: Sender, frames: list[list[Buffer]]) -> None:
        """Send frames, or fail."""
        answer = sender.post(frames)
        if not isinstance(answer, Answered) or any(r.status == "refused" for r in answer.results):
            msg = f"the store did not take it: {answer}"
            raise RuntimeError(msg)

    def put(self, turn: data.Turn, request_id: str, trajectory_id: str | None = None) -> None:
        """Store one turn."""
        self.post(self._sender, data.frames(turn, request_id, trajectory_id))

    def received_bytes(self, name: str, cut: Mapping[str, range]) -> int:
        """Return the length of the answer to a slice of request `name`'s first word."""
        query = "&".join(f"{key}={span.start}:{span.stop}" for key, span in cut.items())
        address = f"{self.url}/v1/requests/{name.split()[0]}/routes?{query}"
        with urllib.request.urlopen(address, timeout=60) as answer:
            return len(answer.read())

    def close(self) -> None:
        """Close the connections."""
        self._sender.close()
        self.client.close()


@contextlib.contextmanager
def running(**environment: str) -> Iterator[Store]:
    """Run a sidecar, of durability `memory` unless told otherwise."""
    port = free_port()
    settings: dict[str, Any] = {"ROUTEREPLAY_DURABILITY": "memory", **environment}
    with (
        tempfile.TemporaryDirectory() as name,
        server(
            ["-m", "routereplay.sidecar"],
            port,
            ROUTEREPLAY_PORT=str(port),
            ROUTEREPLAY_DATA_DIR=f"{name}/data",
            TMPDIR=name,
            **settings,
        ) as pid,
    ):
        store = Store(f"http://127.0.0.1:{port}", pid, Path(name))
        try:
            yield store
        finally:
            store.close()
