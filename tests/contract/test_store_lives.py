"""How long records live: a trajectory as long as it goes on, and at least half a life after."""

import pytest
from support.frames import delta_on, make_upload
from support.route_store import decode_routes

TTL_S = 14_400


def age(store, name, left_s):
    """Let all that is stored under a tag have `left_s` to live."""
    found = keys_of(store, name)
    for key in found:
        store.engine.expire(key, left_s)
    (arrived,) = [key for key in found if key.endswith(b":n")]
    store.engine.hset(arrived, "until", store.engine.time()[0] + left_s)


def keys_of(store, name):
    return list(store.engine.scan_iter(match=f"rr:{{default/?:{name}}}:*", count=1000))


def lives(store, name):
    return {key: store.engine.ttl(key) for key in keys_of(store, name)}


@pytest.mark.parametrize(
    ("left_s", "is_prolonged"), [(TTL_S // 2 - 60, True), (TTL_S // 2 + 60, False)]
)
def test_a_new_turn_prolongs_what_has_less_than_half_its_life(store, left_s, is_prolonged):
    name = f"ageing-{left_s}"
    first = store.put(make_upload(f"{name}-0", seed=1, trajectory_id=name, aliases=(f"{name}-a",)))
    other = store.put(make_upload(f"{name}-other", seed=1, trajectory_id=f"{name}-other"))
    for tag in (name, other.manifest.trajectory_id):
        age(store, tag, left_s)
    before = set(keys_of(store, name))
    row = first.manifest.row_start + first.manifest.rows

    store.put(delta_on(first, row, request_id=f"{name}-1", seed=2))

    shortest = min(lives(store, name)[key] for key in before)
    assert (shortest > TTL_S - 60) is is_prolonged
    assert max(lives(store, f"{name}-other").values()) <= left_s
    _, (rows,), _ = decode_routes(store.get(f"/v1/requests/{name}-1/routes"))
    assert (rows[:row] == first.experts).all()
    values = [ttl for key, ttl in lives(store, name).items() if b":b:" in key]
    records = [ttl for key, ttl in lives(store, name).items() if b":m:" in key]
    assert not is_prolonged or min(values) > min(records)


def test_names_live_as_long_as_the_records_that_they_lead_to(store):
    first = make_upload("named-0", seed=3, trajectory_id="named", aliases=("named-alias",))
    store.put(first)
    age(store, "named", 60)
    pointers = ["rr:{default/i:named-0}", "rr:{default/i:named-alias}"]
    for pointer in pointers:
        assert store.engine.expire(pointer, 60)

    store.put(delta_on(first, 5, request_id="named-1", seed=4))

    assert min(map(store.engine.ttl, pointers)) > TTL_S


def test_what_has_expired_stays_so(store):
    first = store.put(make_upload("gone-0", seed=5, trajectory_id="gone"))
    age(store, "gone", 60)
    store.engine.unlink("rr:{default/t:gone}:m:gone-0:0")

    store.put(make_upload("gone-1", seed=6, trajectory_id="gone", ordinal=1))

    answer = store.get(f"/v1/requests/{first.manifest.request_id}/routes")
    assert (answer.status_code, answer.json()["code"]) == (404, "expired")
    assert store.get("/v1/requests/gone-1/routes").status_code == 200


def test_a_request_of_its_own_and_a_first_turn_cost_no_second_look(store):
    store.put(make_upload("alone", seed=7))
    before = store.engine.info("commandstats")["cmdstat_evalsha"]["calls"]
    store.put(make_upload("alone-2", seed=7))
    alone = store.engine.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    store.put(make_upload("turn-0", seed=7, trajectory_id="fresh"))
    turn = store.engine.info("commandstats")["cmdstat_evalsha"]["calls"] - before - alone

    assert turn == alone
