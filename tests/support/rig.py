"""A store over an engine of its own, both as processes that a fault can be done to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx

from support.engines import Engine
from support.store_processes import Sidecar, until


class Rig:
    """A sidecar, its engine, and a client of each."""

    def __init__(self, sidecar: Sidecar, engine: Engine) -> None:
        self.sidecar = sidecar
        self.engine = engine
        self.url = sidecar.url
        self.http = httpx.Client(base_url=sidecar.url, timeout=30, trust_env=False)

    def post(self, body: bytes) -> httpx.Response:
        return self.http.post("/v1/ingest", content=body)

    def get(self, path: str, **params: object) -> httpx.Response:
        return self.http.get(path, params=params)


@contextlib.contextmanager
def rig(
    folder: Path, *arguments: object, engine: Engine | None = None, **settings
) -> Iterator[Rig]:
    """A ready store in `folder` over an engine with `arguments`."""
    engine = engine or Engine(folder / "engine", *arguments)
    url = settings.pop("redis_url", engine.url)
    sidecar = Sidecar(folder, redis_url=url, **settings)
    found = None
    try:
        if engine.process is None:
            engine.start()
        sidecar.start()
        until(sidecar.is_ready, 20)
        found = Rig(sidecar, engine)
        yield found
    finally:
        if found is not None:
            found.http.close()
        sidecar.stop()
        engine.kill()
