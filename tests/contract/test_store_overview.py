"""What the store says of itself: recent work, recorders, loads of the experts."""

import httpx
import numpy as np
import pytest
from support.frames import make_conversation, make_upload
from support.store_processes import Sidecar, until

from routereplay.wire import PolicySpan
from routereplay.wire.load import expert_counts


def listed(store, what, **params):
    answer = store.get(f"/v1/{what}", **params)
    assert answer.status_code == 200, answer.text
    return answer.json()[what]


def test_what_was_sealed_is_listed_newest_first(store):
    for upload in make_conversation("listed", turns=3, seed=300):
        store.put(upload)
    alone = store.put(make_upload("listed-alone", seed=310))

    newest, second = listed(store, "trajectories", limit=2)

    assert (newest["trajectory_id"], newest["request_id"]) == (None, "listed-alone")
    assert newest["bytes"] == alone.experts.nbytes
    assert (second["trajectory_id"], second["turns"], second["complete"]) == ("listed", 3, True)
    assert second["policy_versions"] == ["7"]
    assert second["expires_at"] - second["first_at"] == pytest.approx(4 * 3600)
    (request,) = listed(store, "requests", limit=1)
    assert (request["request_id"], request["state"]) == ("listed-alone", "sealed")


def test_what_was_dropped_and_by_whom_is_listed(store):
    lost = make_upload("listed-lost", seed=311, engine_id="engine-a", trajectory_id="half")
    store.put(make_upload("listed-kept", seed=312, engine_id="engine-a", trajectory_id="half"))
    store.post(lost.drop_frame("queue_full"))

    half = listed(store, "trajectories", limit=1)[0]
    summary = store.get("/v1/summary").json()

    assert (half["turns"], half["dropped"], half["complete"]) == (2, 1, False)
    (recorder,) = [r for r in summary["recorders"] if r["engine_id"] == "engine-a"]
    assert (recorder["sealed"], recorder["dropped"]) == (1, {"queue_full": 1})
    (alarm,) = [a for a in summary["alarms"] if a["details"].get("reason") == "queue_full"]
    assert (alarm["severity"], alarm["code"]) == ("warning", "records_dropped")


def test_rows_that_the_watch_did_not_trust_are_an_alarm(store):
    poisoned = make_upload("listed-poisoned", seed=318, trajectory_id="poisoned")
    store.put(poisoned.changed(invalid=("zero_rows",)))

    (newest,) = listed(store, "trajectories", limit=1)
    worst = store.get("/v1/summary").json()["alarms"][0]

    assert newest["invalid"] == ["zero_rows"]
    assert (worst["severity"], worst["code"]) == ("critical", "routes_invalid")
    assert worst["details"] == {"reason": "zero_rows"}


def test_a_replay_is_not_listed_twice_and_a_deleted_request_not_at_all(store):
    upload = store.put(make_upload("listed-twice", seed=313))
    store.put(upload)
    assert [r["request_id"] for r in listed(store, "requests")].count("listed-twice") == 1

    store.http.delete("/v1/requests/listed-twice")

    assert "listed-twice" not in [r["request_id"] for r in listed(store, "requests")]


@pytest.mark.parametrize("own_store", ["embedded"], indirect=True)
def test_what_the_engine_lost_is_not_listed_any_more(own_store):
    own_store.put(make_upload("lost-with-the-engine", seed=340))
    assert len(listed(own_store, "requests")) == 1
    own_store.engine.flushall()
    assert listed(own_store, "requests") == []

    own_store.put(make_upload("after-the-loss", seed=341))

    assert [r["request_id"] for r in listed(own_store, "requests")] == ["after-the-loss"]


def test_an_event_of_a_later_release_is_passed_over(store):
    key = next(name for name in store.engine.scan_iter(b"*journal}"))
    store.engine.xadd(key, {b"e": b"\x81\xa4kind\xa9forgotten"})
    store.put(make_upload("after-the-unknown", seed=342))

    assert listed(store, "requests", limit=1)[0]["request_id"] == "after-the-unknown"


def test_the_summary_counts_what_is_stored_and_when_it_expires(store):
    before = store.get("/v1/summary").json()["stored"]
    upload = store.put(make_upload("summed", seed=314))

    after = store.get("/v1/summary").json()

    assert after["ready"]
    assert after["stored"]["records"] == before["records"] + 1
    assert after["stored"]["bytes"] == before["bytes"] + upload.experts.nbytes
    last = after["stored"]["expiring"][-1]
    assert last["records"] >= 1
    assert after["ttl_s"] <= last["in_s"] <= after["ttl_s"] * 1.03
    assert after["counters"]["routereplay_ingest_frames_total{sealed}"] >= 1


@pytest.mark.parametrize("own_store", ["redis7"], indirect=True)
@pytest.mark.redis
def test_a_second_sidecar_on_the_engine_lists_the_same(own_store, tmp_path):
    own_store.put(make_upload("seen-by-both", seed=315))
    until(lambda: b"seen-by-both" in b"".join(_journal(own_store)))
    other = Sidecar(tmp_path, redis_url=own_store.debian.url)
    try:
        other.start()
        seen = httpx.get(f"{other.url}/v1/requests", trust_env=False).json()
    finally:
        other.stop()

    assert [request["request_id"] for request in seen["requests"]] == ["seen-by-both"]


def _journal(store):
    return [fields[b"e"] for _, fields in store.engine.xrange("rr:{default/journal}")]


def test_expert_counts_are_those_of_the_rows(store):
    upload = store.put(make_upload("counted", seed=316, num_experts=300))

    whole = store.get("/v1/requests/counted/experts").json()
    cut = store.get("/v1/requests/counted/experts", tokens="5:25").json()

    assert np.array_equal(whole["counts"], expert_counts(upload.experts, 300))
    assert np.array_equal(cut["counts"], expert_counts(upload.experts[5:25], 300))
    assert (whole["rows"], cut["rows"]) == (len(upload.experts), 20)
    assert [layer["used"] for layer in whole["layers"]] == [
        len(np.unique(upload.experts[:, layer])) for layer in range(4)
    ]


def test_a_trajectory_counts_each_row_once_by_turn_and_by_policy(store):
    turns = make_conversation("counted-turns", turns=3, seed=320)
    last = len(turns[-1].token_ids)
    spans = (PolicySpan("7", 0, last - 4), PolicySpan("8", last - 4, last))
    for upload in [*turns[:-1], turns[-1].changed(policy_versions=spans)]:
        store.put(upload)
    path = "/v1/trajectories/counted-turns/experts"

    whole = store.get(path).json()
    by_turn = [store.get(path, turn=turn).json() for turn in range(3)]
    by_policy = {version: store.get(path, policy=version).json() for version in ("7", "8")}

    assert whole["rows"] == last - 1
    assert np.array_equal(whole["counts"], sum(np.array(one["counts"]) for one in by_turn))
    assert by_policy["8"]["rows"] == 3
    assert np.array_equal(by_policy["8"]["counts"], expert_counts(turns[-1].experts[-3:], 60))
    total = sum(np.array(one["counts"]) for one in by_policy.values())
    assert np.array_equal(whole["counts"], total)


def test_a_turn_that_is_not_there_is_a_bad_request(store):
    store.put(make_upload("one-turn", seed=330, trajectory_id="one-turn"))

    answer = store.get("/v1/trajectories/one-turn/experts", turn=1)

    assert answer.status_code == 400
    assert "1 turns are sealed" in answer.json()["message"]


@pytest.mark.parametrize("own_store", ["redis7"], indirect=True)
@pytest.mark.redis
def test_an_engine_that_is_away_is_told_in_the_summary(own_store):
    own_store.put(make_upload("before", seed=331))
    own_store.debian.kill()

    away = own_store.get("/v1/summary").json()
    own_store.debian.start()
    back = until(lambda: (found := own_store.get("/v1/summary").json())["ready"] and found)

    assert (away["ready"], away["problem"]["code"]) == (False, "unavailable")
    assert back["stored"]["records"] == 1
