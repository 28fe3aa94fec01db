"""What one running sidecar holds: engine, store, metrics, and room for bodies."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import redis.asyncio

from routereplay.sidecar.embedded import EmbeddedEngine
from routereplay.sidecar.journal import Journal
from routereplay.sidecar.metrics import Metrics
from routereplay.sidecar.service import RouteStore
from routereplay.sidecar.settings import Settings
from routereplay.sidecar.store.redis_blobs import RedisBlobs
from routereplay.sidecar.store.redis_engine import check_engine, connect, engine_errors
from routereplay.sidecar.store.redis_index import RedisIndex
from routereplay.sidecar.store.redis_journal import RedisJournal
from routereplay.sidecar.store.resp_blobs import RespBlobs
from routereplay.sidecar.store.resp_pool import SCHEMES, RespPool
from routereplay.wire.errors import StoreUnavailable

logger = logging.getLogger(__name__)

_VALUE_CONNECTIONS = 8


class Runtime:
    """Opened and closed by the app's lifespan; handlers find it in `app.state.runtime`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.stopping = False
        """Set by the server when it is told to stop, while requests are still open."""
        self._embedded: EmbeddedEngine | None = None
        self._client: redis.asyncio.Redis | None = None
        self._values: RespPool | None = None
        self._store: RouteStore | None = None
        self._journal: Journal | None = None
        self._inflight_bytes = 0

    @property
    def store(self) -> RouteStore:
        """The route store, once opened."""
        if self._store is None:
            msg = "the sidecar is not open"
            raise RuntimeError(msg)
        return self._store

    @property
    def journal(self) -> Journal:
        """What happened lately, once opened."""
        if self._journal is None:
            msg = "the sidecar is not open"
            raise RuntimeError(msg)
        return self._journal

    @property
    def engine_kind(self) -> str:
        """`embedded` or `external`."""
        return "external" if self.settings.redis_url else "embedded"

    async def open(self) -> None:
        """Start or reach the engine and check it.

        Raises:
            EngineStartError: the embedded engine does not start.
            EngineMisconfigured: the engine would lose acknowledged routes.
        """
        settings = self.settings
        if settings.redis_url is not None:
            url = settings.redis_url.get_secret_value()
        else:
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
            self._values = RespPool(
                url, timeout_s=settings.engine_timeout_s, connections=_VALUE_CONNECTIONS
            )
        self._store = _store(self._client, self._values, settings)
        log = RedisJournal(self._client, ttl_s=settings.ttl_s, index_ttl_s=settings.index_ttl_s)
        self._journal = Journal(log, self.metrics)
        self._journal.start()
        try:
            await self.check()
        except StoreUnavailable as error:
            # It may come up after us; until then /readyz and every request say 503.
            logger.warning("the engine is not there yet: %s", error)
        except BaseException:
            await self.close()
            raise
        logger.info("route store open: %s engine, %s", self.engine_kind, settings.durability)

    async def close(self) -> None:
        """Close connections and stop the embedded engine."""
        if self._journal is not None:
            await self._journal.stop()
            self._journal = None
        if self._values is not None:
            self._values.close()
            self._values = None
        if self._client is not None:
            await self._client.aclose()
            await self._client.connection_pool.disconnect()
            self._client = None
        if self._embedded is not None:
            await self._embedded.stop()
            self._embedded = None
        self._store = None

    async def check(self) -> None:
        """Raise unless the engine answers and is configured to keep what it is given."""
        await check_engine(self._open_client(), durability=self.settings.durability)

    async def engine_info(self) -> dict[str, object]:
        """Return what an operator wants to see of the engine."""
        with engine_errors():
            info = await self._open_client().info()
        names = ("redis_version", "valkey_version", "used_memory", "maxmemory", "uptime_in_seconds")
        found = {name: info[name] for name in names if name in info}
        keyspace = info.get("db0")
        found["keys"] = keyspace["keys"] if isinstance(keyspace, dict) else 0
        return found

    @contextlib.contextmanager
    def room_for(self, nbytes: int) -> Iterator[None]:
        """Reserve memory for a body, or raise `StoreUnavailable` before any of it is read."""
        if (
            self._inflight_bytes + nbytes > self.settings.max_inflight_bytes
            and self._inflight_bytes
        ):
            msg = (
                f"{self._inflight_bytes} bytes of bodies are being read and at most "
                f"{self.settings.max_inflight_bytes} may be; send again shortly"
            )
            raise StoreUnavailable(msg)
        self._inflight_bytes += nbytes
        self.metrics.inflight_bytes.set(self._inflight_bytes)
        try:
            yield
        finally:
            self._inflight_bytes -= nbytes
            self.metrics.inflight_bytes.set(self._inflight_bytes)

    def _open_client(self) -> redis.asyncio.Redis:
        if self._client is None:
            msg = "the sidecar is not open"
            raise RuntimeError(msg)
        return self._client


def _store(client: redis.asyncio.Redis, values: RespPool | None, settings: Settings) -> RouteStore:
    index = RedisIndex(
        client,
        ttl_s=settings.ttl_s,
        staging_ttl_s=settings.staging_ttl_s,
        index_ttl_s=settings.index_ttl_s,
    )
    return RouteStore(
        RedisBlobs(client) if values is None else RespBlobs(values),
        index,
        value_bytes=settings.value_bytes,
        staging_ttl_s=settings.staging_ttl_s,
        max_wait_s=settings.max_wait_s,
        max_fetch_ids=settings.max_fetch_ids,
    )
