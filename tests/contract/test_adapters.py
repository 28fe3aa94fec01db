"""Routes for a trainer's rollouts, from the real store: all, or an error that says whose."""

import threading
import time

import numpy as np
import pytest
from support.rollouts import Recorded

from routereplay.client import (
    MisalignedRoutes,
    MissingRoutes,
    ModelShape,
    PoisonedRoutes,
    RouteStoreClient,
)
from routereplay.client.adapters import Rollout, fetch_rollouts, rows_of
from routereplay.wire.errors import InvalidRoutes, NotFound, RoutesDropped

pytestmark = pytest.mark.parametrize("store", ["embedded"], indirect=True)

SHAPE = ModelShape(num_layers=24, topk=6, num_experts=64)


@pytest.fixture
def client(store):
    with RouteStoreClient(store.sidecar.url) as client:
        yield client


def rollout(recorded, **changes):
    fields = {"trajectory_id": recorded.name, "loss_mask": recorded.sampled, **changes}
    return Rollout(fields.pop("token_ids", recorded.token_ids), **fields)


def test_each_rollout_gets_the_rows_that_sampled_it_in_the_order_asked_for(store, client):
    recorded = [Recorded(f"many-{n}", 1 + n % 3, seed=n).store_in(store) for n in range(20)]

    routes = fetch_rollouts(client, [rollout(one) for one in recorded])

    for one, mine, rows in zip(recorded, routes, rows_of(routes, model=SHAPE), strict=True):
        assert np.flatnonzero(mine.missing).tolist() == [len(one.token_ids) - 1]
        assert np.array_equal(rows[:-1], one.experts)
        assert len(set(rows[-1, 3])) == SHAPE.topk  # nothing was recorded; a dispatcher takes it


def test_rollouts_are_found_by_the_responses_they_were_sampled_in(store, client):
    first = Recorded("by-request", 3, seed=30).store_in(store)
    other = Recorded("by-trajectory", 2, seed=31).store_in(store)
    asked = tuple((upload.manifest.request_id, 0) for upload in first.uploads)

    routes = fetch_rollouts(
        client, [rollout(other), rollout(first, trajectory_id=None, requests=asked)]
    )

    for one, rows in zip((other, first), rows_of(routes), strict=True):
        assert np.array_equal(rows[:-1], one.experts)


def test_only_the_layers_of_a_stage_are_fetched(store, client):
    recorded = Recorded("stage", 2, seed=32).store_in(store)

    (routes,) = fetch_rollouts(client, [rollout(recorded)], layers=range(6, 12))

    assert routes.layer_start == 6
    assert np.array_equal(rows_of([routes])[0][:-1], recorded.experts[:, 6:12])


@pytest.mark.parametrize("there", [0, 1], ids=["nothing", "its first turn"])
def test_turns_that_the_store_has_not_heard_of_are_waited_for(store, client, there):
    recorded = Recorded(f"late-{there}", 2, seed=33)
    for upload in recorded.uploads[:there]:
        store.put(upload)

    def rest():
        for upload in recorded.uploads[there:]:
            store.put(upload)

    timer = threading.Timer(0.3, rest)
    timer.start()
    try:
        (routes,) = fetch_rollouts(client, [rollout(recorded)], wait_s=60)
    finally:
        timer.join()

    assert np.array_equal(rows_of([routes])[0][:-1], recorded.experts)


def test_what_never_comes_is_an_error_that_says_whose(store, client):
    good = Recorded("never-good", 1, seed=34).store_in(store)
    short = Recorded("never-short", 3, seed=35)
    for upload in short.uploads[:2]:
        store.put(upload)
    absent = Recorded("never-absent", 1, seed=36)

    with pytest.raises(MissingRoutes, match=r"^sample 1 \(trajectory never-short\)") as raised:
        fetch_rollouts(client, [rollout(good), rollout(short), rollout(absent)], wait_s=0.2)
    assert raised.value.details["sample"] == 1
    assert "1 more samples are without routes" in str(raised.value)
    with pytest.raises(NotFound, match=r"^sample 1 \(trajectory never-absent\)"):
        fetch_rollouts(client, [rollout(good), rollout(absent)], wait_s=0.2)
    asked = ((short.uploads[0].manifest.request_id, 0), ("chatcmpl-unheard-of", 1))
    with pytest.raises(NotFound, match=r"^sample 1 \(requests .*chatcmpl-unheard-of choice 1\)"):
        lost = rollout(short, trajectory_id=None, requests=asked)
        fetch_rollouts(client, [rollout(good), lost], wait_s=0.2)


def test_what_cannot_come_any_more_is_not_waited_for(store, client):
    dropped = Recorded("dropped", 2, seed=37)
    store.put(dropped.uploads[0])
    store.post(dropped.uploads[1].drop_frame("queue_full"))
    edited = Recorded("edited", 2, seed=38).store_in(store)
    tokens = edited.token_ids.copy()
    tokens[7] += 1
    poisoned = Recorded("poisoned", 1, seed=39)
    store.put(poisoned.uploads[0].changed(invalid=("zero_rows",)))
    lost = ((dropped.uploads[1].manifest.request_id, 0),)
    began = time.monotonic()

    with pytest.raises(MissingRoutes, match=r"^sample 0 \(trajectory dropped\).*queue_full"):
        fetch_rollouts(client, [rollout(dropped)], wait_s=300)
    with pytest.raises(RoutesDropped, match=r"^sample 0 \(requests chatcmpl-dropped-1"):
        fetch_rollouts(client, [rollout(dropped, trajectory_id=None, requests=lost)], wait_s=300)
    with pytest.raises(MisalignedRoutes, match=r"^sample 0 \(trajectory edited\).*position 7"):
        fetch_rollouts(client, [rollout(edited, token_ids=tokens)], wait_s=300)
    with pytest.raises(PoisonedRoutes, match=r"^sample 0 \(trajectory poisoned\).*zero_rows"):
        fetch_rollouts(client, [rollout(poisoned)], wait_s=300)

    assert time.monotonic() - began < 150


def test_a_last_tool_result_needs_no_route_and_a_trained_token_does(store, client):
    recorded = Recorded("tail", 2, seed=40).store_in(store)
    tokens = np.concatenate([recorded.token_ids, [5, 6, 7]])
    context = np.concatenate([recorded.sampled, [False] * 3])
    trained = np.concatenate([recorded.sampled, [False, True, False]])

    (routes,) = fetch_rollouts(client, [rollout(recorded, token_ids=tokens, loss_mask=context)])

    assert np.flatnonzero(routes.missing).tolist() == [len(recorded.experts) + n for n in range(4)]
    for mask in (trained, None):
        with pytest.raises(MissingRoutes, match="sample 0"):
            fetch_rollouts(
                client, [rollout(recorded, token_ids=tokens, loss_mask=mask)], wait_s=0.1
            )


def test_live_waits_and_then_leaves_lost_rows_to_the_router(store, client):
    recorded = Recorded("live", 2, seed=41)
    store.put(recorded.uploads[0])
    store.post(recorded.uploads[1].drop_frame("queue_full"))

    (routes,) = fetch_rollouts(client, [rollout(recorded)], wait_s=0.2, missing="live")

    there = len(recorded.uploads[0].experts)
    assert np.flatnonzero(~routes.missing).tolist() == list(range(there))


def test_branches_of_one_trajectory_are_rollouts_of_their_own(store, client):
    one, two = (Recorded(name, 1, seed) for name, seed in (("fork", 42), ("fork-b", 43)))
    one.store_in(store)
    for upload in two.uploads:
        store.put(upload.changed(trajectory_id="fork", ordinal=1))
    both = [rollout(one), rollout(two, trajectory_id="fork")]

    with pytest.raises(MisalignedRoutes, match="sample 0"):
        fetch_rollouts(client, both)
    routes = fetch_rollouts(client, both, branches="allow")

    for mine, rows in zip((one, two), rows_of(routes), strict=True):
        assert np.array_equal(rows[:-1], mine.experts)


def test_routes_of_another_model_are_refused(store, client):
    recorded = Recorded("other-model", 1, seed=44).store_in(store)
    routes = fetch_rollouts(client, [rollout(recorded)])

    with pytest.raises(InvalidRoutes, match="expected ModelShape"):
        rows_of(routes, model=ModelShape(num_layers=48, topk=8, num_experts=128))
    assert rows_of([]) == []


def test_a_rollout_says_what_it_lacks(store):
    with pytest.raises(ValueError, match="give one of them"):
        Rollout([1, 2])
    with pytest.raises(ValueError, match="give one of them"):
        Rollout([1, 2], "a", (("b", 0),))
    with pytest.raises(ValueError, match="loss_mask has shape"):
        Rollout([1, 2], "a", loss_mask=[1])
