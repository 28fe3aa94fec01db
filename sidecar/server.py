"""Runs the sidecar under uvicorn."""

from __future__ import annotations

import logging
import os
from types import FrameType

import uvicorn

from routereplay.sidecar.app import create_app
from routereplay.sidecar.logs import configure_logging
from routereplay.sidecar.runtime import Runtime
from routereplay.sidecar.settings import Settings, misspelt_variables

logger = logging.getLogger(__name__)

_KEEP_ALIVE_S = 75


class StoreServer(uvicorn.Server):
    """A server that tells its app of the signal, before it waits for open requests."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note that the store stops, and let uvicorn do the rest."""
        self._runtime.stopping = True
        super().handle_exit(sig, frame)


def create_server(settings: Settings) -> StoreServer:
    """Return a server that is ready to run.

    httptools, as h11 accepts a request with both Content-Length and Transfer-Encoding;
    uvloop, as asyncio copies every response body. Connections are kept longer than
    recorders and trainers pause between batches.
    """
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.graceful_shutdown_s,
    )
    return StoreServer(config, app.state.runtime)


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        SystemExit: it could not start; the log says why.
    """
    configure_logging(settings.log_level)
    for name, close in misspelt_variables(os.environ).items():
        logger.warning("%s is not a setting and changes nothing; did you mean %s?", name, close)
    server = create_server(settings)
    server.run()
    if not server.started:
        raise SystemExit(3)
