"""A store runs only on an engine that keeps its promise, and says so when it no longer does."""

import re

import pytest
from support.engines import Engine, follow
from support.frames import make_upload
from support.route_store import running_store
from support.store_processes import Sidecar, find_redis_server, until

ENGINES = [False, pytest.param(True, marks=pytest.mark.redis)]


@pytest.fixture(scope="module", params=ENGINES, ids=["valkey", "redis7"])
def engine(request, tmp_path_factory):
    if request.param and find_redis_server() is None:
        pytest.skip("no redis-server on PATH or in $ROUTEREPLAY_TEST_REDIS_SERVER")
    with Engine(tmp_path_factory.mktemp("engine"), debian=request.param) as running:
        yield running


@pytest.fixture
def settings(engine):
    """Sets an engine's configuration and takes it back."""
    client, before = engine.client(), {}

    def change(**values):
        for name, value in values.items():
            name = name.replace("_", "-")
            before.setdefault(name, client.config_get(name)[name])
            client.config_set(name, value)

    yield change
    for name, value in before.items():
        client.config_set(name, value)
    client.close()


@pytest.mark.parametrize(
    ("durability", "changed", "says"),
    [
        ("memory", {"maxmemory_policy": "allkeys-lru"}, "noeviction"),
        ("process", {"maxmemory_policy": "volatile-ttl"}, "noeviction"),
        ("process", {"appendonly": "no"}, "no append-only file"),
        ("process", {"appendfsync": "everysec"}, "everysec"),
        ("disk", {}, "before the disk has it"),
        ("disk", {"appendfsync": "always", "no_appendfsync_on_rewrite": "yes"}, "rewrite"),
        ("replica", {}, "min-replicas-to-write"),
    ],
)
def test_an_engine_that_would_break_the_promise_is_refused(
    engine, settings, tmp_path, durability, changed, says
):
    settings(**changed)
    sidecar = Sidecar(tmp_path, redis_url=engine.url, durability=durability)
    sidecar.start(wait=False)

    assert sidecar.wait() == 3
    assert says in sidecar.log()


def test_a_store_on_disk_syncs_before_it_acknowledges(engine, settings, tmp_path):
    settings(appendfsync="always")
    sidecar = Sidecar(tmp_path, redis_url=engine.url, durability="disk")
    sidecar.start()
    try:
        until(sidecar.is_ready)
    finally:
        sidecar.stop()


def test_a_configuration_that_drifts_stops_writes_and_nothing_else(tmp_path):
    with running_store("embedded", tmp_path) as store:
        store.put(make_upload("before", seed=1))
        store.engine.config_set("maxmemory-policy", "allkeys-lru")
        unready = store.get("/readyz")
        refused = store.post(make_upload("during", seed=2).body)
        readable = store.get("/v1/requests/before/routes")
        store.engine.config_set("maxmemory-policy", "noeviction")

        assert (unready.status_code, refused.status_code) == (503, 503)
        assert "noeviction" in unready.json()["message"]
        assert "noeviction" in refused.json()["message"]
        assert readable.status_code == 200
        assert store.get("/readyz").status_code == 200
        store.put(make_upload("during", seed=2))
        assert 'backpressure_total{reason="misconfigured"} 1.0' in store.get("/metrics").text


def test_a_flushed_engine_is_noticed(tmp_path):
    with running_store("embedded", tmp_path, durability="memory") as store:
        store.put(make_upload("flushed", seed=1))
        assert store.get("/readyz").status_code == 200
        assert "data_lost_total 0.0" in store.get("/metrics").text
        store.engine.flushall()

        assert store.get("/readyz").status_code == 200
        assert "data_lost_total 1.0" in store.get("/metrics").text
        assert store.get("/v1/requests/flushed/routes").json()["code"] == "not_found"


def test_new_routes_wait_when_memory_is_nearly_used_up(tmp_path):
    with running_store("embedded", tmp_path, durability="memory") as store:
        store.put(make_upload("kept", seed=1))
        store.engine.set("filler", bytes(16 * 1024 * 1024), ex=600)
        # The buffer that the filler came in is given back in its own time.
        until(lambda: store.engine.info("memory")["used_memory"] < 19 * 1024 * 1024)
        used = store.engine.info("memory")["used_memory"]
        store.engine.config_set("maxmemory", int(used / 0.94))
        # It is looked at once a second.
        shown = re.compile(r'engine_memory_bytes{kind="max"} (\S+)')

        def has_looked():
            found = shown.search(store.get("/metrics").text)
            return found and 0 < float(found[1]) < used * 1.1

        until(has_looked)
        long = make_upload("long", seed=2, prompt_len=10_000, chunk_rows=5000)
        refused = store.post(long.body)

        assert refused.status_code == 503, (refused.text, used, store.engine.info("memory"))
        assert refused.json()["code"] == "store_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert store.get("/v1/requests/kept/routes").status_code == 200
        assert store.post(make_upload("lost", seed=3).drop_frame()).status_code == 200
        assert store.get("/v1/requests/lost/routes").json()["code"] == "dropped"
        assert store.http.delete("/v1/requests/kept").json() == {"deleted": 1}
        store.engine.config_set("maxmemory", 0)
        until(lambda: store.post(long.body).status_code == 200)


def test_a_trajectory_brings_no_more_than_one_may(tmp_path):
    limits = {"max_trajectory_bytes": 3000, "max_trajectory_requests": 5}
    with running_store("embedded", tmp_path, durability="memory", **limits) as store:
        codes = []
        for number in range(8):
            upload = make_upload(f"turn-{number}", seed=number, trajectory_id="long", prompt_len=8)
            response = store.post(upload.body)
            codes.append(response.status_code)
            assert store.post(upload.body).status_code == response.status_code
        many = codes.count(200)
        assert codes == [200] * many + [429] * (8 - many)
        assert many == 5
        big = make_upload("big", seed=9, trajectory_id="other", prompt_len=500)
        refused = store.post(big.body)
        assert refused.status_code == 429
        assert {result["code"] for result in refused.json()["results"]} >= {"limit_reached"}
        assert store.get("/v1/requests/big/routes").status_code == 404
        assert store.get("/v1/trajectories/long").json()["coverage"]["sealed"] == many
        store.put(make_upload("elsewhere", seed=10, trajectory_id="third"))


def test_a_seal_is_acknowledged_when_a_replica_has_it(tmp_path):
    primary = Engine(tmp_path / "a", "--min-replicas-to-write", 1)
    replica = Engine(tmp_path / "b", "--min-replicas-to-write", 1)
    with primary, replica:
        sidecar = Sidecar(tmp_path, redis_url=primary.url, durability="replica")
        sidecar.start()
        try:
            with pytest.raises(AssertionError):
                until(sidecar.is_ready, timeout_s=1)
            follow(replica, primary)
            until(sidecar.is_ready)
            store = _Plain(sidecar)
            assert store.post(make_upload("on-both", seed=1).body).status_code == 200
            replica.signal(19)
            held = store.post(make_upload("on-one", seed=2).body)
            again = store.post(make_upload("on-one", seed=2).seal_frame)
            replica.signal(18)
            assert (held.status_code, again.status_code) == (503, 503)
            assert "replica" in again.json()["message"]
            until(lambda: store.post(make_upload("on-one", seed=2).body).status_code == 200)
        finally:
            sidecar.stop()


class _Plain:
    def __init__(self, sidecar):
        self._url = sidecar.url

    def post(self, body):
        import httpx

        return httpx.post(f"{self._url}/v1/ingest", content=body, timeout=10)
