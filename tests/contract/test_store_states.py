"""What the store says of a record that is not there, and how long it waits for one."""

import contextlib
import threading
import time

import httpx
import numpy as np
from support.frames import make_conversation, make_upload
from support.route_store import decode_routes, results
from support.store_processes import until


def code(response):
    assert response.headers["content-type"] == "application/problem+json"
    assert response.status_code == response.json()["status"]
    return response.json()["code"]


def test_an_id_that_was_never_seen_is_not_found(store):
    for path in ("requests/ghost", "requests/ghost/routes", "trajectories/ghost/routes"):
        assert code(store.get(f"/v1/{path}")) == "not_found"


def test_a_pending_request_is_pending_under_its_alias_too(store):
    store.post(make_upload("chatcmpl-open", aliases=("open",)).chunk_frames[2])

    for name in ("chatcmpl-open", "open"):
        assert code(store.get(f"/v1/requests/{name}/routes")) == "pending"


def test_a_dropped_request_is_dropped_with_its_reason(store):
    upload = make_upload("lost", aliases=("lost-alias",))

    assert results(store.post(upload.drop_frame("queue_full"))) == ["noted"]
    for name in ("lost", "lost-alias"):
        problem = store.get(f"/v1/requests/{name}/routes").json()
        assert (problem["code"], problem["details"]["reason"]) == ("dropped", "queue_full")
        assert problem["details"]["rows_lost"] == upload.manifest.rows


def test_a_drop_after_the_seal_takes_nothing_away(store):
    upload = store.put(make_upload("kept", seed=1))
    store.post(upload.drop_frame("store_unreachable"))

    _, (rows,), _ = decode_routes(store.get("/v1/requests/kept/routes"))
    assert np.array_equal(rows, upload.experts)


def test_a_drop_of_another_upload_leaves_a_pending_one_alone(store):
    mine, other = make_upload("both-live", seed=2), make_upload("both-live", seed=3)
    store.post(mine.chunk_frames[0])
    store.post(other.drop_frame())

    assert code(store.get("/v1/requests/both-live/routes")) == "pending"


def test_a_dropped_upload_takes_no_more_chunks(store):
    upload = make_upload("given-up", seed=4)
    store.post(upload.chunk_frames[0] + upload.drop_frame())

    assert results(store.post(upload.chunk_frames[1])) == ["dropped"]


def test_another_upload_seals_over_a_drop(store):
    store.post(make_upload("second-chance", seed=5).drop_frame())
    upload = store.put(make_upload("second-chance", seed=6))

    _, (rows,), _ = decode_routes(store.get("/v1/requests/second-chance/routes"))
    assert np.array_equal(rows, upload.experts)


def test_a_deleted_request_is_deleted_and_leaves_no_value(store):
    upload = store.put(make_upload("removed", seed=7, aliases=("removed-alias",)))

    assert store.http.delete("/v1/requests/removed").json() == {"deleted": 1}
    for path in ("requests/removed", "requests/removed/routes", "requests/removed-alias/routes"):
        assert code(store.get(f"/v1/{path}")) == "deleted"
    assert store.engine.keys("rr:*:b:0_removed-7:*") == []
    assert code(store.http.delete("/v1/requests/removed")) == "deleted"
    assert set(results(store.post(upload.body))[:4]) == {"deleted"}


def test_a_pending_request_can_be_deleted(store):
    upload = make_upload("cancelled", seed=8)
    store.post(upload.chunk_frames[0])
    store.http.delete("/v1/requests/cancelled")

    assert code(store.get("/v1/requests/cancelled/routes")) == "deleted"
    assert store.engine.keys("rr:*:b:0_cancelled-8:*") == []
    assert results(store.post(upload.chunk_frames[1])) == ["deleted"]


def test_a_deleted_turn_stays_visible_as_a_gap(store):
    first, second = make_conversation("holed", turns=2, seed=9)
    store.put(first)
    store.put(second)
    store.http.delete(f"/v1/requests/{first.manifest.request_id}")

    turns = store.get("/v1/trajectories/holed").json()["turns"]
    assert [(turn["state"], turn["reason"]) for turn in turns] == [
        ("dropped", "deleted"),
        ("sealed", ""),
    ]


def test_a_deleted_trajectory_is_deleted_with_all_its_turns(store):
    turns = [store.put(upload) for upload in make_conversation("ended", turns=3, seed=11)]

    assert store.http.delete("/v1/trajectories/ended").json() == {"deleted": 3}
    assert code(store.get("/v1/trajectories/ended/routes")) == "deleted"
    for turn in turns:
        assert code(store.get(f"/v1/requests/{turn.manifest.request_id}/routes")) == "deleted"
    assert store.engine.keys("rr:{default/t:ended}:b:*") == []


def test_a_record_that_outlived_its_time_is_expired(short_lived):
    short_lived.put(make_upload("fleeting", seed=12, trajectory_id="fleeting-dialogue"))

    assert until(lambda: short_lived.get("/v1/requests/fleeting/routes").status_code == 404)
    assert code(short_lived.get("/v1/requests/fleeting/routes")) == "expired"
    assert code(short_lived.get("/v1/requests/fleeting")) == "expired"
    assert code(short_lived.get("/v1/trajectories/fleeting-dialogue/routes")) == "expired"


def test_an_expired_id_can_be_sealed_again(short_lived):
    short_lived.put(make_upload("reborn", seed=13))
    assert until(lambda: short_lived.get("/v1/requests/reborn/routes").status_code == 404)
    upload = make_upload("reborn", seed=14)

    def reborn():
        # On a machine that stands still for a second it expires before it is read, or sealed.
        short_lived.post(upload.body)
        answer = short_lived.get("/v1/requests/reborn/routes")
        return answer.status_code == 200 and answer

    _, (rows,), _ = decode_routes(until(reborn))
    assert np.array_equal(rows, upload.experts)


def test_an_upload_that_was_never_sealed_ends_as_dropped(short_lived):
    short_lived.post(make_upload("abandoned", seed=15).chunk_frames[0])

    def state():
        return short_lived.get("/v1/requests/abandoned/routes").json()

    assert until(lambda: state()["code"] == "dropped")
    assert state()["details"]["reason"] == "never_sealed"
    assert short_lived.engine.keys("rr:*:b:0_abandoned-15:*") == []


def test_waiting_ends_when_a_pending_request_is_sealed(store):
    upload = make_upload("awaited", seed=20)
    store.post(b"".join(upload.chunk_frames))

    elapsed, (rows,) = _seal_while_waiting(store, upload.seal_frame, "requests/awaited")
    assert 0.2 < elapsed < 5
    assert np.array_equal(rows, upload.experts)


def test_waiting_ends_when_an_unknown_request_appears(store):
    upload = make_upload("chatcmpl-unseen", seed=21, aliases=("unseen",))

    elapsed, (rows,) = _seal_while_waiting(store, upload.body, "requests/unseen")
    assert 0.2 < elapsed < 5
    assert np.array_equal(rows, upload.experts)


def test_waiting_for_a_trajectory_ends_when_no_turn_is_pending(store):
    first, second = make_conversation("awaited-dialogue", turns=2, seed=22)
    store.put(first)
    store.post(b"".join(second.chunk_frames))

    elapsed, rows = _seal_while_waiting(store, second.seal_frame, "trajectories/awaited-dialogue")
    assert 0.2 < elapsed < 5
    assert len(rows) == 2


def test_waiting_gives_up_in_time(store):
    store.post(make_upload("stuck", seed=24).chunk_frames[0])
    started = time.monotonic()
    answer = store.get("/v1/requests/stuck/routes", wait=0.4)

    assert code(answer) == "pending"
    assert 0.4 <= time.monotonic() - started < 3


def test_waiting_does_not_outlast_a_drop(store):
    upload = make_upload("hopeless", seed=25)
    store.post(upload.drop_frame())
    started = time.monotonic()

    assert code(store.get("/v1/requests/hopeless/routes", wait=20)) == "dropped"
    assert time.monotonic() - started < 3


def test_waiting_ends_when_the_client_leaves(store):
    with contextlib.suppress(httpx.ReadTimeout):
        store.http.get("/v1/requests/nobody/routes", params={"wait": 30}, timeout=0.3)

    def waiting():
        lines = store.get("/metrics").text.splitlines()
        (line,) = [line for line in lines if line.startswith("routereplay_waiting_requests")]
        return float(line.split()[1])

    assert until(lambda: waiting() == 0, timeout_s=3)


def test_a_batch_waits_for_its_slowest_id(store):
    ready, late = make_upload("batch-ready", seed=26), make_upload("batch-late", seed=27)
    store.put(ready)
    timer = threading.Timer(0.4, store.post, [late.body])
    timer.start()
    body = {"requests": [{"id": "batch-ready"}, {"id": "batch-late"}], "wait": 20}
    header, *_ = decode_routes(httpx.post(f"{store.sidecar.url}/v1/fetch", json=body, timeout=30))
    timer.join()

    assert (len(header.items), header.failures) == (2, ())


def _seal_while_waiting(store, body, path):
    """Send `body` a little after a read of `path` began; return its seconds and rows."""
    timer = threading.Timer(0.8, store.post, [body])
    # A client of its own: the store's is busy sending. Made before the clock starts,
    # which on a busy machine takes longer than the pause.
    with httpx.Client(base_url=store.sidecar.url, timeout=30) as reader:
        timer.start()
        started = time.monotonic()
        answer = reader.get(f"/v1/{path}/routes", params={"wait": 20})
        elapsed = time.monotonic() - started
    timer.join()
    _, rows, _ = decode_routes(answer)
    return elapsed, rows
