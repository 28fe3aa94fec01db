"""`create_app`: the HTTP face of one route store."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from routereplay.sidecar.api import (
    docs,
    fetch,
    health,
    ingest,
    overview,
    pages,
    requests,
    trajectories,
)
from routereplay.sidecar.api.observe import Observe
from routereplay.sidecar.api.openapi import install_openapi
from routereplay.sidecar.api.paths import WholeIds
from routereplay.sidecar.api.problems import install_handlers
from routereplay.sidecar.auth.key_store import WatchedKeys
from routereplay.sidecar.auth.middleware import Authenticate
from routereplay.sidecar.runtime import Runtime
from routereplay.sidecar.settings import Settings
from routereplay.sidecar.version import package_version
from routereplay.wire.errors import RouteReplayError

logger = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """Return the app; its lifespan opens the store and closes it.

    Raises:
        KeyFileInvalid: see `read_key_file`.

    Raises (on startup):
        EngineStartError, EngineMisconfigured: see `Runtime.open`.
    """
    keys = None
    if settings.keys_file is not None:
        keys = WatchedKeys(settings.keys_file)
        keys.load()
    runtime = Runtime(settings, keys)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await runtime.open()
        except RouteReplayError as error:
            logger.error("%s: %s", error.code, error.message)
            raise
        try:
            yield
        finally:
            await runtime.close()

    app = FastAPI(
        title="routereplay route store",
        version=package_version(),
        lifespan=lifespan,
        # FastAPI's own pages load their scripts from a CDN; ours work without a network.
        docs_url=None,
        redoc_url=None,
    )
    app.state.runtime = runtime
    install_handlers(app)
    install_openapi(app, with_keys=keys is not None)
    for module in (ingest, overview, requests, trajectories, fetch, health, pages, docs):
        app.include_router(module.router)
    # The last one added is the first one asked.
    app.add_middleware(
        Authenticate,
        keys=keys,
        admission=runtime.admission,
        metrics=runtime.metrics,
        allowed_hosts=settings.host_names,
    )
    app.add_middleware(Observe, metrics=runtime.metrics)
    app.add_middleware(WholeIds)
    return app
