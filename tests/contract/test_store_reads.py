"""What is read is what was recorded: slices, trajectories, batches, other formats."""

import io
import json

import numpy as np
import pytest
from support.frames import make_conversation, make_upload
from support.route_store import decode_routes

UPLOAD = make_upload("sliced", seed=40, row_start=5, prompt_len=40, chunk_rows=7)


@pytest.fixture(scope="module")
def sliced(store):
    return store.put(UPLOAD)


@pytest.mark.parametrize(
    "tokens", [None, ":", "5:12", "6:30", "30:", ":9", "20:20", "0:999", "51:60"]
)
@pytest.mark.parametrize("layers", [None, "1:3", ":1", "3:"])
def test_a_slice_equals_the_numpy_slice(store, sliced, tokens, layers):
    params = {"tokens": tokens, "layers": layers}
    asked = {name: value for name, value in params.items() if value is not None}
    header, (rows,), (token_ids,) = decode_routes(store.get("/v1/requests/sliced/routes", **asked))

    full = np.concatenate([np.zeros((5, 4, 2), np.uint8), sliced.experts])
    start, stop = _ends(tokens, len(full))
    first, last = _ends(layers, 4)
    item = header.items[0]
    assert np.array_equal(rows, full[max(start, 5) : stop, first:last])
    assert (item.layer_start, item.layers) == (first, last - first)
    assert item.rows == 0 or item.token_start == max(start, 5)
    assert np.array_equal(token_ids, sliced.token_ids)


@pytest.mark.parametrize(
    "query",
    ["layers=0:5", "layers=2:2", "tokens=9:3", "tokens=a:b", "tokens=5", "choice=-1", "wait=x"],
)
def test_a_query_that_means_nothing_is_a_bad_request(store, sliced, query):
    response = store.http.get(f"/v1/requests/sliced/routes?{query}")

    assert (response.status_code, response.json()["code"]) == (400, "bad_request")


def test_a_slice_reads_only_the_chunks_that_it_needs(store):
    upload = store.put(make_upload("sparse", seed=41))
    (value,) = store.engine.keys("rr:*:b:0_sparse-41:c3:*")
    store.engine.setrange(value, 0, b"\xff")

    assert store.get("/v1/requests/sparse/routes", tokens="30:32").status_code == 502
    _, (rows,), _ = decode_routes(store.get("/v1/requests/sparse/routes", tokens="0:30"))
    assert np.array_equal(rows, upload.experts[:30])


def test_an_answer_announces_its_length(store, sliced):
    response = store.get("/v1/requests/sliced/routes")

    assert int(response.headers["content-length"]) == len(response.content)
    assert response.headers["content-type"] == "application/vnd.routereplay.routes"


def test_a_long_answer_is_streamed_with_its_length(store):
    upload = make_upload(
        "streamed", seed=42, prompt_len=60_000, num_layers=100, topk=2, chunk_rows=4000
    )
    for frame in [*upload.chunk_frames, upload.seal_frame]:
        assert store.post(frame).status_code == 200

    response = store.get("/v1/requests/streamed/routes")
    _, (rows,), _ = decode_routes(response)
    assert int(response.headers["content-length"]) == len(response.content) > 12_000_000
    assert np.array_equal(rows, upload.experts)


def test_a_trajectory_carries_each_row_once_and_first_captured_wins(store):
    turns = [store.put(upload) for upload in make_conversation("dialogue", turns=3, seed=50)]
    header, rows, tokens = decode_routes(store.get("/v1/trajectories/dialogue/routes"))

    assert [item.manifest.request_id for item in header.items] == [
        turn.manifest.request_id for turn in turns
    ]
    assert [item.parent for item in header.items] == [None, 0, 1]
    assert sum(item.rows for item in header.items) == len(turns[-1].experts)
    covered = 0
    for item, turn, sent, ids in zip(header.items, turns, rows, tokens, strict=True):
        assert item.token_start == covered
        assert np.array_equal(sent, turn.experts[covered:])
        assert np.array_equal(ids, turn.token_ids)
        covered = len(turn.experts)


def test_a_trajectory_is_ordered_by_start_whatever_the_order_of_arrival(store):
    turns = make_conversation("backwards", turns=3, seed=60)
    for upload in reversed(turns):
        store.put(upload)

    described = store.get("/v1/trajectories/backwards").json()
    expected = [turn.manifest.request_id for turn in turns]
    assert [turn["request_id"] for turn in described["turns"]] == expected
    header, *_ = decode_routes(store.get("/v1/trajectories/backwards/routes"))
    assert [turn.request_id for turn in header.trajectories[0].turns] == expected


def test_a_trajectory_can_be_cut_by_tokens_and_layers(store):
    turns = [store.put(upload) for upload in make_conversation("cut", turns=2, seed=65)]
    url = "/v1/trajectories/cut/routes"
    header, rows, _ = decode_routes(store.get(url, tokens="15:24", layers="1:2"))

    assert [item.token_start for item in header.items] == [15, 19]
    assert np.array_equal(rows[0], turns[0].experts[15:, 1:2])
    assert np.array_equal(rows[1], turns[1].experts[19:24, 1:2])


def test_a_trajectory_says_which_turns_are_pending_and_dropped(store):
    first, second, third = make_conversation("gaps", turns=3, seed=70)
    store.put(first)
    store.post(second.drop_frame("queue_full"))
    store.post(third.chunk_frames[0])

    header, *_ = decode_routes(store.get("/v1/trajectories/gaps/routes"))
    (trajectory,) = header.trajectories
    states = {turn.request_id: (turn.state, turn.reason) for turn in trajectory.turns}
    assert states == {
        "gaps-turn-0": ("sealed", ""),
        "gaps-turn-1": ("dropped", "queue_full"),
        "gaps-turn-2": ("pending", ""),
    }
    assert (len(header.items), trajectory.items) == (1, (0,))
    coverage = store.get("/v1/trajectories/gaps").json()["coverage"]
    assert (coverage["sealed"], coverage["dropped"], coverage["pending"]) == (1, 1, 1)
    assert (coverage["complete"], coverage["rows_lost"]) == (False, second.manifest.rows)


def test_a_described_trajectory_names_its_policy_versions(store):
    for upload in make_conversation("policies", turns=2, seed=75):
        store.put(upload)
    described = store.get("/v1/trajectories/policies").json()

    assert described["policy_versions"] == ["7"]
    assert described["coverage"]["complete"] is True


def test_a_batch_lists_what_failed_and_serves_the_rest(store):
    record = store.put(make_upload("in-batch", seed=80))
    turns = [store.put(upload) for upload in make_conversation("batch-dialogue", turns=2, seed=81)]
    store.post(make_upload("batch-pending", seed=83).chunk_frames[0])
    body = {
        "requests": [{"id": "in-batch"}, {"id": "unheard-of"}, {"id": "batch-pending"}],
        "trajectories": ["batch-dialogue", "no-such-dialogue"],
    }

    header, rows, _ = decode_routes(store.http.post("/v1/fetch", json=body))
    assert {failure.id: failure.code for failure in header.failures} == {
        "unheard-of": "not_found",
        "batch-pending": "pending",
        "no-such-dialogue": "not_found",
    }
    assert np.array_equal(rows[0], record.experts)
    assert [trajectory.items for trajectory in header.trajectories] == [(1, 2)]
    assert np.array_equal(rows[2], turns[1].experts[len(turns[0].experts) :])


def test_a_corrupt_record_fails_alone_in_a_batch(store):
    store.put(make_upload("batch-broken", seed=84))
    (value,) = store.engine.keys("rr:*:b:0_batch-broken-84:c0:*")
    store.engine.setrange(value, 0, b"\xff")
    good = store.put(make_upload("batch-good", seed=85))
    body = {"requests": [{"id": "batch-broken"}, {"id": "batch-good"}]}

    header, (rows,), _ = decode_routes(store.http.post("/v1/fetch", json=body))
    assert [(failure.id, failure.code) for failure in header.failures] == [
        ("batch-broken", "corrupt")
    ]
    assert np.array_equal(rows, good.experts)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"requests": "x"}',
        b'{"unknown": 1}',
        b"{}",
        b'{"trajectories": ["a"], "layers": [3, 1]}',
        b'{"trajectories": ["a"], "wait": -1}',
        json.dumps({"trajectories": ["a"] * 2000}).encode(),
    ],
)
def test_a_fetch_that_means_nothing_is_a_bad_request(store, body):
    response = store.http.post("/v1/fetch", content=body)

    assert (response.status_code, response.json()["code"]) == (400, "bad_request")


def test_npz_holds_the_same_arrays(store, sliced):
    response = store.get("/v1/requests/sliced/routes", format="npz", tokens="6:20", layers="1:3")
    with np.load(io.BytesIO(response.content), allow_pickle=False) as arrays:
        assert np.array_equal(arrays["experts"], sliced.experts[1:15, 1:3])
        assert np.array_equal(arrays["token_ids"], sliced.token_ids)
        assert (arrays["token_start"], arrays["layer_start"]) == (6, 1)


def test_npz_of_a_trajectory_numbers_its_turns(store):
    turns = [store.put(upload) for upload in make_conversation("npz-turns", turns=2, seed=90)]
    response = store.get("/v1/trajectories/npz-turns/routes", format="npz")
    with np.load(io.BytesIO(response.content), allow_pickle=False) as arrays:
        joined = np.concatenate([arrays["experts_0"], arrays["experts_1"]])
        assert (arrays["parent_0"], arrays["parent_1"]) == (-1, 0)

    expected = np.concatenate([turns[0].experts, turns[1].experts[len(turns[0].experts) :]])
    assert np.array_equal(joined, expected)


def test_json_holds_the_same_numbers(store, sliced):
    (item,) = store.get("/v1/requests/sliced/routes", format="json", tokens="5:9").json()["items"]

    assert item["experts"] == sliced.experts[:4].tolist()
    assert item["token_ids"] == sliced.token_ids.tolist()
    assert item["manifest"]["request_id"] == "sliced"


def test_an_unknown_format_is_a_bad_request(store, sliced):
    response = store.get("/v1/requests/sliced/routes", format="pickle")

    assert (response.status_code, response.json()["code"]) == (400, "bad_request")


def _ends(text, length):
    if text is None:
        return 0, length
    start, stop = text.split(":")
    return int(start or 0), min(int(stop), length) if stop else length
