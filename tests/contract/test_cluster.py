"""The store on a Redis Cluster; ./scripts/faults runs the whole contract there."""

import numpy as np
import pytest
from support.frames import make_conversation, make_upload
from support.route_store import decode_routes, results, running_store
from support.store_processes import until


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with running_store("cluster", tmp_path_factory.mktemp("cluster")) as running:
        yield running


def test_a_conversation_lives_in_one_slot_and_comes_back(store):
    turns = make_conversation("on-a-cluster", turns=3)
    for turn in turns:
        store.put(turn)
        assert results(store.post(turn.body))[-1] == "replayed"
    header, rows, _ = decode_routes(store.get("/v1/trajectories/on-a-cluster/routes"))
    names = store.engine.keys("rr:{default/t:on-a-cluster}:*")

    assert len(header.items) == 3
    assert np.array_equal(rows[0], turns[0].experts)
    assert len({store.engine.execute_command("CLUSTER", "KEYSLOT", name) for name in names}) == 1
    assert store.http.delete("/v1/trajectories/on-a-cluster").json() == {"deleted": 3}
    assert store.get("/v1/trajectories/on-a-cluster/routes").json()["code"] == "deleted"


def test_it_is_ready_and_shows_what_came(store):
    store.put(make_upload("seen", seed=1))

    assert store.get("/readyz").status_code == 200
    until(lambda: "seen" in store.get("/v1/requests").text)
