"""Waits until a replica has what was written: durability `replica`.

`WAIT` counts the replicas that have what was written on its own connection and before, so
a write and its `WAIT` share one connection; and a promise about a record that was written
earlier, perhaps on a node that is none any more, is made by reading it there first.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio
from redis import exceptions as refusals
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection

from routereplay.sidecar.store.redis_engine import engine_errors
from routereplay.wire.errors import StoreUnavailable

_WAIT_SHARE = 0.7
"""How much of the time for one answer a replica may take."""
_BARRIER_TTL_S = 60
_REPLICAS = 1


class Replicas:
    """Confirms that records are on a replica too."""

    def __init__(self, client: redis.asyncio.Redis, *, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def confirm(self, record: str, barrier: str, content: bytes) -> None:
        """Return when a replica has the record `record` with identity `content`.

        Raises:
            StoreUnavailable: none has it in time, or the record went with a primary that
                failed; sending the same bytes again heals both.
        """
        wait_ms = int(self._timeout_s * _WAIT_SHARE * 1000)
        with engine_errors():
            found, _, count = await self._on_one_connection(
                record,
                ("HGET", record, "content"),
                ("SET", barrier, b"", "EX", _BARRIER_TTL_S),
                ("WAIT", _REPLICAS, wait_ms),
            )
        if found != content:
            msg = "the record was sealed on a node that failed since; send it again"
            raise StoreUnavailable(msg)
        if count < _REPLICAS:
            msg = f"no replica has the record within {wait_ms} ms; send it again"
            raise StoreUnavailable(msg)

    async def _on_one_connection(self, key: str, *commands: tuple[Any, ...]) -> list[Any]:
        async with asyncio.timeout(self._timeout_s):
            if not isinstance(self._client, RedisCluster):
                async with self._client.pipeline(transaction=False) as pipe:
                    for words in commands:
                        pipe.execute_command(*words)
                    return await pipe.execute()
            node = self._client.get_node_from_key(key)
            if node is None:
                msg = "no node of the cluster has the record's slot"
                raise refusals.ConnectionError(msg)
            connection = node.acquire_connection()
            try:
                return await _exchange(connection, commands)
            except BaseException:
                await connection.disconnect()
                raise
            finally:
                node.release(connection)


async def _exchange(
    connection: AbstractConnection, commands: tuple[tuple[Any, ...], ...]
) -> list[Any]:
    await connection.connect()  # type: ignore[no-untyped-call]
    await connection.send_packed_command(connection.pack_commands(commands))
    return [await connection.read_response() for _ in commands]
