"""A running store seen from outside: its HTTP face, and the engine behind it."""

from __future__ import annotations

import contextlib

import httpx
import numpy as np
import pytest
import redis

from routereplay.wire import MEDIA_TYPE, Routes, decode_frame
from routereplay.wire.codec import read_rows
from support.engines import Cluster
from support.frames import Upload
from support.store_processes import DebianRedis, Sidecar, find_redis_server


class Store:
    """What a test holds of it."""

    def __init__(
        self, sidecar: Sidecar, engine: redis.Redis, debian: DebianRedis | None = None
    ) -> None:
        self.sidecar = sidecar
        self.debian = debian
        self.engine = engine
        self.http = httpx.Client(base_url=sidecar.url, timeout=30, trust_env=False)

    def post(self, body: bytes) -> httpx.Response:
        return self.http.post("/v1/ingest", content=body, headers={"Content-Type": MEDIA_TYPE})

    def put(self, upload: Upload) -> Upload:
        """Store a whole upload, or fail."""
        response = self.post(upload.body)
        assert response.status_code == 200, response.text
        return upload

    def get(self, path: str, **params: object) -> httpx.Response:
        return self.http.get(path, params=params)

    def contents(self) -> dict[bytes, bytes]:
        """Every key of the engine with its value; differs if anything stored differs.

        Without the journal of recent events, which is written in its own time.
        """
        names = self.engine.scan_iter(count=1000)
        return {name: self.engine.dump(name) for name in names if b"/journal}" not in name}

    def close(self) -> None:
        self.http.close()
        self.engine.close()


def results(response: httpx.Response) -> list[str]:
    """Status of each ingested frame, or its error code if refused."""
    return [result["code"] or result["status"] for result in response.json()["results"]]


def decode_routes(response: httpx.Response) -> tuple[Routes, list, list]:
    """The header of a routes answer, and each item's rows and token ids as arrays."""
    assert response.status_code == 200, response.text
    frame = decode_frame(response.content)
    rows, tokens = [], []
    for item in frame.header.items:
        manifest = item.manifest
        flat = frame.payload[item.rows_offset : item.rows_offset + item.rows_nbytes]
        found = (item.layers, manifest.topk, manifest.num_experts)
        rows.append(read_rows(flat, manifest.dtype, *found))
        flat = frame.payload[item.tokens_offset : item.tokens_offset + item.tokens_nbytes]
        tokens.append(np.frombuffer(flat, "<i4"))
    return frame.header, rows, tokens


@contextlib.contextmanager
def running_store(engine: str, folder, **settings: object):
    """A store on `engine` in `folder`."""
    debian = cluster = None
    if engine == "cluster":
        # One node with every slot: it has all the rules of a cluster.
        cluster = Cluster(folder, primaries=1)
        cluster.__enter__()
        settings["redis_url"] = cluster.url
    if engine == "redis7":
        if find_redis_server() is None:
            pytest.skip("no redis-server on PATH or in $ROUTEREPLAY_TEST_REDIS_SERVER")
        debian = DebianRedis(folder)
        debian.start()
        settings["redis_url"] = debian.url
    sidecar = Sidecar(folder, **settings)
    store = None
    try:
        sidecar.start()
        if cluster is not None:
            client = cluster.nodes[0].client()
        else:
            path = debian.path if debian else sidecar.embedded_socket()
            client = redis.Redis(unix_socket_path=path, protocol=2)
        store = Store(sidecar, client, debian)
        yield store
    finally:
        if store is not None:
            store.close()
        sidecar.stop()
        if debian is not None:
            debian.kill()
        if cluster is not None:
            cluster.__exit__()
