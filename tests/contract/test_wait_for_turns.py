"""Who knows what a trajectory holds is never answered without it."""

import threading
import time

import pytest
from support.frames import make_conversation, make_upload

from routereplay.client import AsyncRouteStoreClient, RouteStoreClient
from routereplay.wire.errors import BadRequest, RoutesPending
from routereplay.wire.ids import normalize_id


def arriving(store, upload, after_s):
    """A turn of which the store hears only later."""
    timer = threading.Timer(after_s, lambda: store.post(upload.body))
    timer.start()
    return timer


@pytest.mark.parametrize("told", [{"turns": 3}, {"request": "told-{}-turn-2"}])
def test_a_turn_that_was_not_heard_of_is_waited_for(store, told):
    name = f"told-{'-'.join(told)}"
    told = {key: str(value).format("-".join(told)) for key, value in told.items()}
    first, second, last = make_conversation(name, seed=40)
    store.put(first)
    store.put(second)
    path = f"/v1/trajectories/{name}/routes"

    early = store.get(path, wait=0.1, **told)
    late = arriving(store, last, 0.4)
    began = time.monotonic()
    answer = store.get(path, wait=20, format="json", **told)
    late.join()

    assert (early.status_code, early.json()["code"]) == (404, "pending")
    assert answer.status_code == 200
    assert 0.3 < time.monotonic() - began < 10
    assert len(answer.json()["items"]) == 3
    assert len(store.get(path, format="json").json()["items"]) == 3


def test_a_request_is_known_by_the_clients_own_id_and_as_one_of_another_trajectory(store):
    alias = normalize_id("my-own/id")
    mine = make_upload("mine-0", seed=41, trajectory_id="mine", aliases=(alias,))
    store.put(mine)
    store.put(make_upload("yours-0", seed=42, trajectory_id="yours"))
    path = "/v1/trajectories/mine/routes"

    assert store.get(path, request=["mine-0", "my-own/id"]).status_code == 200
    wrong = store.get(path, request="yours-0", wait=20)
    assert (wrong.status_code, wrong.json()["code"]) == (400, "bad_request")
    assert "trajectory yours" in wrong.json()["message"]


def test_a_batch_waits_for_each_trajectory_by_its_own(store):
    whole = make_conversation("batched-whole", seed=43)
    partial = make_conversation("batched-part", seed=44)
    for turn in (*whole, *partial[:2]):
        store.put(turn)
    ids = ["batched-whole", "batched-part"]
    failures = []

    with RouteStoreClient(store.sidecar.url) as client:
        found = client.fetch_trajectories(ids, turns=[3, 3], on_missing=failures.append)
        assert [one.trajectory_id for one in found] == ids[:1]
        assert [(one.id, one.code) for one in failures] == [("batched-part", "pending")]
        with pytest.raises(RoutesPending, match="batched-part-turn-2"):
            client.fetch_trajectory("batched-part", requests=["batched-part-turn-2"])
        late = arriving(store, partial[2], 0.3)
        requests = [[turn.manifest.request_id for turn in talk] for talk in (whole, partial)]
        found = client.fetch_trajectories(ids, requests=requests, wait_s=20)
        late.join()
    assert [len(one.turns) for one in found] == [3, 3]


def test_what_is_wanted_must_fit_the_trajectories(store):
    with (
        RouteStoreClient(store.sidecar.url) as client,
        pytest.raises(ValueError, match="turns has 1 entries for 2 trajectories"),
    ):
        client.fetch_trajectories(["a", "b"], turns=[1])


async def _two(url):
    client = AsyncRouteStoreClient(url)
    try:
        with pytest.raises(BadRequest):
            await client.fetch_trajectory("async", requests=["foreign"])
        return await client.fetch_trajectories(["async"], turns=[3], requests=[["async-turn-1"]])
    finally:
        await client.aclose()


def test_the_asynchronous_client_asks_alike(store):
    import asyncio

    for turn in make_conversation("async", seed=45):
        store.put(turn)
    store.put(make_upload("foreign", seed=46))

    (found,) = asyncio.run(_two(store.sidecar.url))
    assert len(found.turns) == 3
