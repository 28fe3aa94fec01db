"""The route store as a child process, on a free port of 127.0.0.1."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from routereplay.parity.child_server import ChildServer, free_port


class RouteStore(ChildServer):
    """`routereplay serve`; without a Redis URL it brings its own Valkey."""

    def __init__(self, log_path: Path) -> None:
        port = free_port()
        # What an earlier run stored is none of this one's business.
        own = {
            "ROUTEREPLAY_DATA_DIR": str(log_path.parent.absolute() / "store"),
            "ROUTEREPLAY_PORT": str(port),
        }
        super().__init__(
            [sys.executable, "-m", "routereplay.sidecar"],
            port=port,
            log_path=log_path,
            environment={**os.environ, **own},
            ready_path="/readyz",
            ready_timeout_s=60.0,
        )
