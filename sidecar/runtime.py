"""What one running sidecar holds: engine, store, metrics, and room for bodies."""

from __future__ import annotations

import asyncio
import logging

import redis.asyncio

from routereplay.sidecar.admission import Admission
from routereplay.sidecar.auth.key_store import WatchedKeys
from routereplay.sidecar.embedded import EmbeddedEngine
from routereplay.sidecar.engine_watch import EngineWatch
from routereplay.sidecar.http.tls import ServerTls
from routereplay.sidecar.journal import Journal
from routereplay.sidecar.metrics import Metrics
from routereplay.sidecar.periodic import Periodic
from routereplay.sidecar.service import RouteStore
from routereplay.sidecar.settings import Settings
from routereplay.sidecar.store.base import Blobs, Index
from routereplay.sidecar.store.commands import Commands, RedisCommands, RespCommands
from routereplay.sidecar.store.redis_blobs import RedisBlobs
from routereplay.sidecar.store.redis_engine import close, connect, engine_errors, primaries
from routereplay.sidecar.store.redis_index import RedisIndex
from routereplay.sidecar.store.redis_journal import RedisJournal
from routereplay.sidecar.store.redis_replicas import Replicas
from routereplay.sidecar.store.resp_blobs import RespBlobs
from routereplay.sidecar.store.resp_pool import SCHEMES, RespPool
from routereplay.sidecar.store.resp_replies import ReplyConnection
from routereplay.wire.errors import StoreUnavailable

logger = logging.getLogger(__name__)

_VALUE_CONNECTIONS = 8
_FILES_EVERY_S = 2.0


class Runtime:
    """Opened and closed by the app's lifespan; handlers find it in `app.state.runtime`."""

    def __init__(self, settings: Settings, keys: WatchedKeys | None = None) -> None:
        self.settings = settings
        self.tls = ServerTls.from_settings(settings)
        self._keys = keys
        self._files = Periodic(self._refresh_files, _FILES_EVERY_S)
        self.metrics = Metrics()
        self.admission = Admission(settings, self.metrics)
        self.stopping = False
        """Set by the server when it is told to stop, while requests are still open."""
        self._embedded: EmbeddedEngine | None = None
        self._client: redis.asyncio.Redis | None = None
        self._direct: tuple[RespPool, RespPool] | None = None
        """Connections for values and for commands, where redis-py is not needed."""
        self._watch: EngineWatch | None = None
        self._parts: tuple[Blobs, Index] | None = None
        self._stores: dict[str, RouteStore] = {}
        """By namespace."""
        self._journals: dict[str, Journal] = {}

    def store(self, namespace: str) -> RouteStore:
        """Return the route store of a namespace."""
        if self._parts is None:
            msg = "the sidecar is not open"
            raise RuntimeError(msg)
        store = self._stores.get(namespace)
        if store is None:
            settings = self.settings
            store = self._stores[namespace] = RouteStore(
                *self._parts,
                namespace=namespace,
                value_bytes=settings.value_bytes,
                staging_ttl_s=settings.staging_ttl_s,
                max_wait_s=settings.max_wait_s,
                max_fetch_ids=settings.max_fetch_ids,
            )
        return store

    def journal(self, namespace: str) -> Journal:
        """Return what happened lately in a namespace."""
        journal = self._journals.get(namespace)
        if journal is None:
            settings = self.settings
            log = RedisJournal(
                self._open_client(),
                namespace,
                ttl_s=settings.ttl_s,
                index_ttl_s=settings.index_ttl_s,
            )
            journal = self._journals[namespace] = Journal(log, self.metrics)
            journal.start()
        return journal

    @property
    def engine_kind(self) -> str:
        """`embedded` or `external`."""
        return "external" if self.settings.has_engine else "embedded"

    async def open(self) -> None:
        """Start or reach the engine and check it.

        Raises:
            EngineStartError: the embedded engine does not start.
            EngineMisconfigured: the engine would lose acknowledged routes.
        """
        settings = self.settings
        url = settings.engine_url()
        if url is None:
            self._embedded = EmbeddedEngine(
                durability=settings.durability,
                data_dir=settings.data_dir,
                max_memory_bytes=settings.max_memory_bytes,
            )
            await self._embedded.start()
            url = self._embedded.url
        self._client = connect(
            url, timeout_s=settings.engine_timeout_s, connections=settings.engine_connections
        )
        if url.startswith(SCHEMES):
            timeout_s, connections = settings.engine_timeout_s, settings.engine_connections
            self._direct = (
                RespPool(url, timeout_s=timeout_s, connections=_VALUE_CONNECTIONS),
                RespPool(url, timeout_s=timeout_s, connections=connections, kind=ReplyConnection),
            )
        self._parts = _parts(self._client, self._direct, settings)
        self._watch = EngineWatch(
            self._client,
            durability=settings.durability,
            high_water=settings.memory_high_water,
            metrics=self.metrics,
        )
        try:
            await self.check()
        except StoreUnavailable as error:
            # It may come up after us; until then /readyz and every request say 503.
            logger.warning("the engine is not there yet: %s", error)
        except BaseException:
            await self.close()
            raise
        self._files.start()
        self._watch.start()
        logger.info("route store open: %s engine, %s", self.engine_kind, settings.durability)

    async def close(self) -> None:
        """Close connections and stop the embedded engine."""
        await self._files.stop()
        if self._watch is not None:
            await self._watch.stop()
            self._watch = None
        for journal in self._journals.values():
            await journal.stop()
        self._journals.clear()
        if self._direct is not None:
            for pool in self._direct:
                pool.close()
            self._direct = None
        if self._client is not None:
            await close(self._client)
            self._client = None
        if self._embedded is not None:
            await self._embedded.stop()
            self._embedded = None
        self._parts = None
        self._stores.clear()

    async def check(self) -> None:
        """Raise unless the engine answers and is configured to keep what it is given."""
        await self.watch.check()

    @property
    def watch(self) -> EngineWatch:
        """What is known of the engine between requests, once opened."""
        if self._watch is None:
            msg = "the sidecar is not open"
            raise RuntimeError(msg)
        return self._watch

    async def engine_info(self) -> dict[str, object]:
        """Return what an operator wants to see of the engine."""
        with engine_errors():
            found_nodes = [await ask("INFO") for ask in await primaries(self._open_client())]
        info = found_nodes[0] | {
            name: sum(int(node.get(name, 0)) for node in found_nodes)
            for name in ("used_memory", "maxmemory")
        }
        names = ("redis_version", "valkey_version", "used_memory", "maxmemory", "uptime_in_seconds")
        found = {name: info[name] for name in names if name in info}
        keyspace = info.get("db0")
        found["keys"] = keyspace["keys"] if isinstance(keyspace, dict) else 0
        return found

    async def _refresh_files(self) -> None:
        """Take up API keys and certificates that were replaced."""
        in_order = self._keys is None or await asyncio.to_thread(self._keys.refresh)
        if self.tls is not None and self.settings.enable_ssl_refresh:
            in_order &= await asyncio.to_thread(self.tls.refresh)
        self.metrics.files_in_order.set(in_order)

    def _open_client(self) -> redis.asyncio.Redis:
        if self._client is None:
            msg = "the sidecar is not open"
            raise RuntimeError(msg)
        return self._client


def _parts(
    client: redis.asyncio.Redis, direct: tuple[RespPool, RespPool] | None, settings: Settings
) -> tuple[Blobs, Index]:
    blobs: Blobs
    commands: Commands
    if direct is None:
        blobs, commands = RedisBlobs(client), RedisCommands(client)
    else:
        blobs, commands = RespBlobs(direct[0]), RespCommands(direct[1])
    index = RedisIndex(
        commands,
        ttl_s=settings.ttl_s,
        staging_ttl_s=settings.staging_ttl_s,
        index_ttl_s=settings.index_ttl_s,
        max_bytes=settings.max_trajectory_bytes,
        max_requests=settings.max_trajectory_requests,
        replicas=(
            Replicas(client, timeout_s=settings.engine_timeout_s)
            if settings.durability == "replica"
            else None
        ),
    )
    return blobs, index
