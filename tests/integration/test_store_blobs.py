"""Values in the engine: written once, never changed, never given a shorter life."""

import pytest
import uvloop

from routereplay.sidecar.embedded import EmbeddedEngine
from routereplay.sidecar.store.base import Wanted
from routereplay.sidecar.store.redis_blobs import RedisBlobs
from routereplay.sidecar.store.redis_engine import connect
from routereplay.sidecar.store.resp_blobs import RespBlobs
from routereplay.sidecar.store.resp_pool import RespPool
from routereplay.wire.errors import StoreFull, StoreUnavailable


def places(*sizes):
    return [memoryview(bytearray(size)) for size in sizes]


@pytest.fixture(params=["redis-py", "in place"])
def with_blobs(tmp_path, request):
    """Run an async function with blobs and the client of an engine of its own."""

    async def run(use):
        engine = EmbeddedEngine(
            durability="memory", data_dir=tmp_path, max_memory_bytes=64 * 1024 * 1024
        )
        await engine.start()
        client = connect(engine.url, timeout_s=2, connections=4)
        pool = RespPool(engine.url, timeout_s=2, connections=2)
        blobs = RedisBlobs(client) if request.param == "redis-py" else RespBlobs(pool)
        try:
            return await use(blobs, client)
        finally:
            pool.close()
            await client.aclose()
            await client.connection_pool.disconnect()
            await engine.stop()

    # As under uvicorn.
    return lambda use: uvloop.run(run(use))


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
        (place,) = places(5)
        return await blobs.read([Wanted("key", place)]), bytes(place)

    assert with_blobs(use) == ([5], b"first")


def test_many_values_come_back_in_order_with_the_lost_ones_marked(with_blobs):
    values = [(f"{{t}}{number}", bytes([number]) * 1_000_000) for number in range(12)]

    async def use(blobs, client):
        await blobs.put(values, 100)
        await client.delete("{t}5")
        into = places(*[1_000_000] * 12)
        wanted = [Wanted(key, place) for (key, _), place in zip(values, into, strict=True)]
        return await blobs.read(wanted), into

    lengths, into = with_blobs(use)
    assert lengths == [None if number == 5 else 1_000_000 for number in range(12)]
    for number, (_, value) in enumerate(values):
        assert into[number] == (bytes(1_000_000) if number == 5 else value)


def test_parts_of_values_are_read_and_what_does_not_fit_its_place_is_not(with_blobs):
    async def use(blobs, _):
        await blobs.put([("key", bytes(range(100))), ("none", b"")], 100)
        into = places(10, 10, 10, 5, 200, 0)
        starts = [0, 95, 200, None, None, None]
        keys = ["key", "key", "key", "key", "key", "none"]
        wanted = [Wanted(*one) for one in zip(keys, into, starts, strict=True)]
        # What comes after a value that was skipped is still in its place.
        wanted.append(Wanted("key", places(100)[0]))
        return await blobs.read(wanted), [bytes(want.into) for want in wanted]

    lengths, into = with_blobs(use)
    assert lengths == [10, 5, None, 100, 100, 0, 100]
    assert into[0] == bytes(range(10))
    assert into[1:6] == [bytes(10), bytes(10), bytes(5), bytes(200), b""]
    assert into[6] == bytes(range(100))


def test_a_full_engine_is_full_and_serves_what_it_has(with_blobs):
    async def use(blobs, client):
        await blobs.put([("kept", b"x" * 1_000_000)], 100)
        await client.config_set("maxmemory", "1mb")
        with pytest.raises(StoreFull):
            await blobs.put([("more", b"x" * 1_000_000)], 100)
        (place,) = places(1_000_000)
        return await blobs.read([Wanted("kept", place)])

    assert with_blobs(use) == [1_000_000]


def test_an_engine_that_closes_idle_connections_is_asked_again_and_one_that_is_gone_is_away(
    with_blobs,
):
    async def use(blobs, client):
        await blobs.put([("key", b"value")], 100)
        await client.client_kill_filter(_type="normal", skipme=True)
        (place,) = places(5)
        lengths = await blobs.read([Wanted("key", place)])
        try:
            await client.shutdown(nosave=True, now=True)
        finally:
            with pytest.raises(StoreUnavailable):
                await blobs.read([Wanted("key", place)])
        return lengths

    assert with_blobs(use) == [5]
