"""Values in the engine: written once, never changed, never given a shorter life."""

import asyncio

import pytest

from routereplay.sidecar.embedded import EmbeddedEngine
from routereplay.sidecar.store.redis_blobs import RedisBlobs
from routereplay.sidecar.store.redis_engine import connect


@pytest.fixture
def with_blobs(tmp_path):
    """Run an async function with blobs and the client of an engine of its own."""

    async def run(use):
        engine = EmbeddedEngine(
            durability="memory", data_dir=tmp_path, max_memory_bytes=64 * 1024 * 1024
        )
        await engine.start()
        client = connect(engine.url, timeout_s=2, connections=4)
        try:
            return await use(RedisBlobs(client), client)
        finally:
            await client.aclose()
            await client.connection_pool.disconnect()
            await engine.stop()

    return lambda use: asyncio.run(run(use))


def test_a_value_that_is_put_again_never_lives_shorter(with_blobs):
    async def use(blobs, client):
        await blobs.put([("key", b"value")], 1000)
        await blobs.put([("key", b"value")], 10)
        kept = await client.ttl("key")
        await blobs.put([("key", b"value")], 5000)
        return kept, await client.ttl("key")

    kept, extended = with_blobs(use)
    assert 900 < kept <= 1000
    assert 4900 < extended <= 5000


def test_a_value_that_is_there_is_not_written_over(with_blobs):
    async def use(blobs, _):
        await blobs.put([("key", b"first")], 100)
        await blobs.put([("key", b"other")], 100)
        return await blobs.get(["key"])

    assert with_blobs(use) == [b"first"]


def test_many_values_come_back_in_order_with_the_lost_ones_marked(with_blobs):
    values = [(f"{{t}}{number}", bytes([number]) * 1_000_000) for number in range(12)]

    async def use(blobs, client):
        await blobs.put(values, 100)
        await client.delete("{t}5")
        return await blobs.get([key for key, _ in values])

    found = with_blobs(use)
    assert found[5] is None
    assert found[:5] + found[6:] == [
        value for number, (_, value) in enumerate(values) if number != 5
    ]
