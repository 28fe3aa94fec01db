"""The connection to a Redis, a Valkey or a cluster of them: limits, the meaning of its errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any, TypeAlias, cast

import redis.asyncio
from redis import exceptions as refusals
from redis.asyncio.client import Pipeline
from redis.asyncio.cluster import ClusterPipeline, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from routereplay.wire.errors import StoreFull, StoreUnavailable

Ask: TypeAlias = Callable[..., Awaitable[Any]]
"""Sends a command, by its words, to one node."""

CLUSTER_SCHEMES = ("redis+cluster://", "rediss+cluster://")

# First word of an engine's error that passes by itself or by an operator's hand.
_PASSING = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "READONLY",
    "TRYAGAIN",
    "UNKILLABLE",
)


class _Bounded(redis.asyncio.Redis):
    """A client whose every call ends in time, retries and new connections included."""

    budget_s: float

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        async with asyncio.timeout(self.budget_s):
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        made = _BoundedPipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        made.budget_s = self.budget_s
        return made


class _BoundedPipeline(Pipeline):
    budget_s: float

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        async with asyncio.timeout(self.budget_s):
            return await super().execute(raise_on_error)


class _BoundedClusterPipeline(ClusterPipeline):
    async def execute(
        self, raise_on_error: bool = True, allow_redirections: bool = True
    ) -> list[Any]:
        async with asyncio.timeout(cast("_BoundedCluster", self.cluster_client).budget_s):
            return await super().execute(raise_on_error, allow_redirections)


class _BoundedCluster(RedisCluster):
    budget_s: float

    def pipeline(
        self, transaction: bool | None = None, shard_hint: str | None = None
    ) -> ClusterPipeline:
        # Always without a transaction: every value goes on its own.
        return _BoundedClusterPipeline(self)  # type: ignore[abstract]

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        async with asyncio.timeout(self.budget_s):
            return await super().execute_command(*args, **options)


def connect(url: str, *, timeout_s: float, connections: int) -> redis.asyncio.Redis:
    """Return a client that connects on first use.

    No call takes longer than `timeout_s`: redis-py's own ten retries would hold a caller
    for a minute, and every caller here can be told to come back. RESP2, because RESP3 makes
    redis-py send a command on connect that Valkey does not know. A node that has become a
    replica is left and looked for anew, as an address may lead to another one meanwhile.
    """
    if url.startswith(CLUSTER_SCHEMES):
        return _connect_cluster(url, timeout_s=timeout_s, connections=connections)
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        protocol=2,
        max_connections=connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 1),
        retry_on_error=[refusals.ConnectionError, refusals.ReadOnlyError],
    )
    client = cast("_Bounded", _Bounded.from_pool(pool))
    client.budget_s = timeout_s
    return client


def _connect_cluster(url: str, *, timeout_s: float, connections: int) -> redis.asyncio.Redis:
    made = _BoundedCluster.from_url(
        url.replace("+cluster", "", 1),
        protocol=2,
        max_connections=connections,
        socket_timeout=timeout_s / 2,
        socket_connect_timeout=timeout_s / 2,
        # A node that is gone: ask the others at once where its slots are now.
        retry=Retry(NoBackoff(), 2),
        reinitialize_steps=1,
    )
    client = cast("_BoundedCluster", made)
    client.budget_s = timeout_s
    # It has the same commands, and no class in common.
    return cast("redis.asyncio.Redis", client)


async def close(client: redis.asyncio.Redis) -> None:
    """Close the connections of a client."""
    await client.aclose()
    if not isinstance(client, RedisCluster):
        await client.connection_pool.disconnect()


async def primaries(client: redis.asyncio.Redis) -> list[Ask]:
    """Return a way to ask each node that takes writes."""
    if not isinstance(client, RedisCluster):
        return [client.execute_command]
    with engine_errors():
        async with asyncio.timeout(cast("_BoundedCluster", client).budget_s):
            await client.initialize()
    return [_asking(client, node) for node in client.get_primaries()]


def _asking(cluster: RedisCluster, node: Any) -> Ask:
    async def ask(*words: Any) -> Any:
        return await cluster.execute_command(*words, target_nodes=node)

    return ask


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn what the engine says into `StoreUnavailable` or `StoreFull`.

    What is left, such as a wrong type at a key or a missing permission, is a fault of
    ours or of the set-up, and is not dressed up as something that a retry could heal.
    """
    try:
        yield
    except refusals.OutOfMemoryError as error:
        msg = "the engine is at its memory limit; stored routes stay, new ones must wait"
        raise StoreFull(msg) from error
    except (
        refusals.ConnectionError,
        refusals.TimeoutError,
        refusals.ClusterError,
        refusals.RedisClusterException,
        OSError,
    ) as error:
        msg = f"no answer from the engine behind the store: {type(error).__name__}"
        raise StoreUnavailable(msg) from error
    except refusals.ResponseError as error:
        # redis-py has classes for some of these and not for others, by version.
        text = str(error)
        if "OOM" in text.split(maxsplit=1)[:1] or "used memory > 'maxmemory'" in text:
            msg = "the engine is at its memory limit; stored routes stay, new ones must wait"
            raise StoreFull(msg) from error
        passing = isinstance(
            error,
            refusals.ReadOnlyError | refusals.TryAgainError | refusals.AskError,
        )
        if passing or any(word in text for word in _PASSING):
            msg = f"the engine behind the store takes no command now: {text[:200]}"
            raise StoreUnavailable(msg) from error
        raise


def script_text(name: str) -> str:
    """Return the source of `scripts/NAME.lua`."""
    return (resources.files("routereplay.sidecar") / "scripts" / f"{name}.lua").read_text()
