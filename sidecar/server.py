"""Runs the sidecar under uvicorn."""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
from types import FrameType

import uvicorn

from routereplay.sidecar.app import create_app
from routereplay.sidecar.auth.exposure import check_exposure
from routereplay.sidecar.http.descriptors import connections_that_fit
from routereplay.sidecar.http.limits import HttpLimits
from routereplay.sidecar.http.receiving import receiving_protocol
from routereplay.sidecar.logs import configure_logging
from routereplay.sidecar.runtime import Runtime
from routereplay.sidecar.settings import Settings, misspelt_variables
from routereplay.wire.errors import RouteReplayError

logger = logging.getLogger(__name__)

_KEEP_ALIVE_S = 75
_GARBAGE = 20_000
"""Objects that are made and not freed between two looks for garbage."""
_LAST_RESORT_S = 30
"""Beyond the time for open requests: closing connections and stopping the engine."""


class StoreServer(uvicorn.Server):
    """A server that tells its app of the signal, before it waits for open requests."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note that the store stops, and let uvicorn do the rest, in bounded time."""
        self._runtime.stopping = True
        # Whatever hangs, a supervisor must not be the one who ends it: say where, and exit.
        limit_s = self._runtime.settings.graceful_shutdown_s + _LAST_RESORT_S
        faulthandler.dump_traceback_later(limit_s, exit=True)
        super().handle_exit(sig, frame)


def create_server(settings: Settings) -> StoreServer:
    """Return a server that is ready to run.

    On httptools, as h11 accepts a request with both Content-Length and Transfer-Encoding,
    with the limits that uvicorn lacks; on uvloop, as asyncio copies every response body.
    Connections are kept longer than recorders and trainers pause between batches.
    """
    app = create_app(settings)
    runtime: Runtime = app.state.runtime
    limits = HttpLimits(
        head_s=settings.head_timeout_s,
        stall_s=settings.stall_timeout_s,
        min_bytes_per_s=settings.min_bytes_per_s,
        max_connections=connections_that_fit(settings.max_connections, settings.engine_connections),
        unwanted_bytes=settings.max_body_bytes,
    )
    closed = runtime.metrics.http_closed
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=receiving_protocol(limits, lambda reason: closed.labels(reason).inc()),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.graceful_shutdown_s,
    )
    config.load()
    config.ssl = None if runtime.tls is None else runtime.tls.context
    return StoreServer(config, runtime)


def _collect_rarely() -> None:
    """Let the collector leave alone what stays, and come once in a thousand turns that are read.

    By default it came with every fifth, and took a fifth of a batch's time to find nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE)


def _ended_as_told(_: int, __: FrameType | None) -> None:
    raise SystemExit(0)


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        SystemExit: it could not start; the log says why.
    """
    configure_logging(settings.log_level)
    for name, close in misspelt_variables(os.environ).items():
        logger.warning("%s is not a setting and changes nothing; did you mean %s?", name, close)
    try:
        check_exposure(settings)
        server = create_server(settings)
    except RouteReplayError as error:
        logger.error("%s: %s", error.code, error.message)
        raise SystemExit(3) from error
    _collect_rarely()
    # uvicorn raises the signal again once it has stopped: a stop that was asked for and went
    # well is no failure, and Python's own handler would end us with one.
    signal.signal(signal.SIGTERM, _ended_as_told)
    server.run()
    faulthandler.cancel_dump_traceback_later()
    if not server.started:
        raise SystemExit(3)
