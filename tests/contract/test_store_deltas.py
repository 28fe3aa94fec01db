"""A delta is served whole while its ancestors are there, and never wrong when they are not."""

import io
import time

import msgspec
import numpy as np
import pytest
from support.frames import delta_on, make_upload, parent_ref
from support.route_store import decode_routes, results

from routereplay.client import RouteStoreClient


def chain(name, turns=4, **fields):
    """Deltas, each on the one before; with the rows that each token's row must equal."""
    uploads = [make_upload(f"{name}-0", seed=1, trajectory_id=name, **fields)]
    rows = [uploads[0].experts]
    for turn in range(1, turns):
        before = uploads[-1]
        start = before.manifest.row_start + before.manifest.rows
        delta = delta_on(before, start, request_id=f"{name}-{turn}", seed=turn + 1, **fields)
        uploads.append(delta)
        rows.append(np.concatenate([rows[-1][:start], delta.experts]))
    return uploads, rows


def code(response):
    assert response.status_code == response.json()["status"]
    return response.json()["code"]


@pytest.mark.parametrize("fields", [{}, {"num_experts": 512}])
def test_a_request_is_served_whole_from_its_ancestors(store, fields):
    name = f"whole-{len(fields)}"
    uploads, expected = chain(name, **fields)
    for upload in uploads:
        store.put(upload)

    for upload, rows in zip(uploads, expected, strict=True):
        url = f"/v1/requests/{upload.manifest.request_id}/routes"
        header, (sent,), (tokens,) = decode_routes(store.get(url))
        assert header.items[0].token_start == 0
        assert np.array_equal(sent, rows)
        assert np.array_equal(tokens, upload.token_ids)
        assert header.items[0].manifest == upload.manifest
    sources = [(s.request_id, s.token_start, s.rows) for s in header.items[0].sources]
    starts = [upload.manifest.row_start for upload in uploads]
    assert sources == [
        (f"{name}-{turn}", start, upload.manifest.rows)
        for turn, (start, upload) in enumerate(zip(starts, uploads, strict=True))
    ]


@pytest.mark.parametrize(
    ("tokens", "layers"),
    [
        ("3:50", "1:3"),
        ("0:1", None),
        ("31:33", "0:1"),
        ("32:33", None),
        ("40:", "3:4"),
        (":", None),
    ],
)
def test_slices_run_across_the_ancestors(store, tokens, layers):
    uploads, expected = chain("sliced-chain")
    for upload in uploads:
        store.put(upload)
    url = "/v1/requests/sliced-chain-3/routes"
    asked = {"tokens": tokens} | ({"layers": layers} if layers else {})
    header, (rows,), _ = decode_routes(store.get(url, **asked))

    start, stop = (int(text) if text else None for text in tokens.split(":"))
    first, last = map(int, layers.split(":")) if layers else (0, 4)
    assert np.array_equal(rows, expected[-1][start:stop, first:last])
    assert header.items[0].token_start == (start or 0)


def test_npz_and_batches_are_whole_too(store):
    uploads, expected = chain("forms", turns=3)
    for upload in uploads:
        store.put(upload)
    archive = store.get("/v1/requests/forms-2/routes", format="npz")
    _, (rows,), _ = decode_routes(
        store.http.post("/v1/fetch", json={"requests": [{"id": "forms-2"}]})
    )

    with np.load(io.BytesIO(archive.content)) as arrays:
        assert np.array_equal(arrays["experts"], expected[2])
    assert np.array_equal(rows, expected[2])
    (item,) = store.get("/v1/requests/forms-2/routes", format="json").json()["items"]
    assert item["experts"] == expected[2].tolist()
    assert [source["request_id"] for source in item["sources"]] == ["forms-0", "forms-1", "forms-2"]


def test_the_client_says_for_which_records_rows_were_captured(store):
    uploads, expected = chain("client-chain", turns=3)
    for upload in uploads:
        store.put(upload)
    with RouteStoreClient(store.sidecar.url) as client:
        routes = client.fetch_request("client-chain-2")
        own = client.fetch_request("client-chain-0")

    assert np.array_equal(routes.experts, expected[2])
    assert [source.rows for source in routes.sources] == [u.manifest.rows for u in uploads]
    assert own.sources == ()


def test_a_trajectory_of_deltas_sends_every_row_once(store):
    uploads, expected = chain("once")
    for upload in uploads:
        store.put(upload)
    header, rows, _ = decode_routes(store.get("/v1/trajectories/once/routes"))

    assert [item.parent for item in header.items] == [None, 0, 1, 2]
    assert np.array_equal(np.concatenate(rows), expected[-1])
    assert all(item.sources == () for item in header.items)


def test_a_fork_takes_from_its_parent_only_what_they_share(store):
    """The delta begins before its parent's own rows do: they are the grandparent's."""
    (root, middle), expected = chain("fork", turns=2)
    leaf = delta_on(middle, 10, request_id="fork-leaf", seed=77)
    for upload in (root, middle, leaf):
        store.put(upload)
    header, (rows,), _ = decode_routes(store.get("/v1/requests/fork-leaf/routes"))

    assert np.array_equal(rows, np.concatenate([expected[1][:10], leaf.experts]))
    assert [source.request_id for source in header.items[0].sources] == ["fork-0", "fork-leaf"]


def test_choices_of_a_request_share_the_rows_of_the_first(store):
    first = make_upload("sibling", seed=1)
    prompt = first.manifest.prompt_len
    second = delta_on(
        first, prompt - 1, request_id="sibling", choice=1, completion_len=9, ordinal=0
    )
    store.post(first.chunk_frames[0])
    # The second ends first: its parent is on its way.
    assert results(store.post(second.body)) == ["staged", "sealed"]
    url = "/v1/requests/sibling/routes"
    assert code(store.get(url, choice=1)) == "pending"
    _, (alone,), _ = decode_routes(store.get(url, choice=1, tokens=f"{prompt - 1}:"))
    store.put(first)
    _, (rows,), _ = decode_routes(store.get(url, choice=1))

    assert np.array_equal(alone, second.experts)
    assert np.array_equal(rows, np.concatenate([first.experts[: prompt - 1], second.experts]))


def test_a_read_waits_for_the_parent_too(store):
    first = make_upload("awaited", seed=1)
    second = delta_on(first, 19, request_id="awaited", choice=1)
    store.post(first.chunk_frames[0])
    store.put(second)
    began = time.monotonic()

    assert code(store.get("/v1/requests/awaited/routes", choice=1, wait=0.3)) == "pending"
    assert time.monotonic() - began >= 0.3


def _bad_prefix(parent):
    tokens = np.random.default_rng(5).integers(0, 1000, 30)
    return make_upload(
        f"{parent.manifest.request_id}+",
        token_ids=tokens,
        completion_len=3,
        row_start=20,
        trajectory_id=parent.manifest.trajectory_id,
        parent=parent_ref(parent, tokens[:20]),
    )


def _other_recording(parent):
    delta = delta_on(parent, 20)
    ref = msgspec.structs.replace(delta.manifest.parent, upload_id="another")
    return delta.changed(parent=ref)


def _beyond_its_rows(parent):
    tokens = np.append(parent.token_ids, [1, 2, 3, 4])
    return make_upload(
        f"{parent.manifest.request_id}+",
        token_ids=tokens,
        completion_len=3,
        row_start=len(parent.token_ids),
        trajectory_id=parent.manifest.trajectory_id,
        parent=parent_ref(parent, tokens[: len(parent.token_ids)]),
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_bad_prefix, "other token ids"),
        (_other_recording, "recorded anew"),
        (_beyond_its_rows, "rows up to 32 only"),
        (lambda parent: delta_on(parent, 20, num_experts=61), "of another model or shape"),
        (lambda parent: delta_on(parent, 20).changed(model="other"), "another model"),
    ],
)
def test_a_parent_that_does_not_match_is_refused_and_nothing_changes(store, make, reason):
    name = "refused-" + reason.replace(" ", "-")
    parent = store.put(make_upload(name, seed=1, trajectory_id=name))
    delta = make(parent)
    store.post(b"".join(delta.chunk_frames))
    before = store.contents()
    response = store.post(delta.seal_frame)

    assert (response.status_code, results(response)) == (409, ["parent_mismatch"])
    assert reason in response.json()["results"][0]["message"]
    assert store.contents() == before
    # As an orphan its own rows are stored; as a whole it is never served.
    assert results(store.post(delta.seal(orphan=True))) == ["sealed"]
    url = f"/v1/requests/{delta.manifest.request_id}/routes"
    assert code(store.get(url)) == "parent_mismatch"
    start = delta.manifest.row_start
    _, (rows,), _ = decode_routes(store.get(url, tokens=f"{start}:"))
    assert np.array_equal(rows, delta.experts)


def test_a_delta_that_contradicts_itself_is_malformed(store):
    parent = store.put(make_upload("sane", seed=1, trajectory_id="sane"))
    delta = delta_on(parent, 20)
    ref = delta.manifest.parent
    for changes in (
        {"parent": msgspec.structs.replace(ref, prefix_digest=b"0" * 16)},
        {"parent": msgspec.structs.replace(ref, request_id="sane+")},
        {"parent": msgspec.structs.replace(ref, choice=-1)},
        {"row_start": 0, "rows": 0, "chunks": ()},
    ):
        broken = delta.changed(**changes)
        assert results(store.post(broken.seal_frame)) == ["malformed_frame"], changes


@pytest.mark.parametrize("loss", ["never seen", "dropped", "deleted"])
def test_a_lost_parent_is_refused_and_named_to_the_reader(store, loss):
    parent = make_upload(
        f"lost-{loss[:4].strip()}", seed=1, trajectory_id=f"loss-{loss[:4].strip()}"
    )
    if loss == "dropped":
        store.post(parent.drop_frame("queue_full"))
    elif loss == "deleted":
        store.put(parent)
        store.http.delete(f"/v1/requests/{parent.manifest.request_id}")
    delta = delta_on(parent, 20)
    response = store.post(delta.body)

    assert (response.status_code, results(response)[-1]) == (409, "parent_lost")
    assert results(store.post(delta.seal(orphan=True))) == ["sealed"]
    answer = store.get(f"/v1/requests/{delta.manifest.request_id}/routes")
    assert code(answer) == {"never seen": "parent_lost"}.get(loss, loss)
    assert parent.manifest.request_id in answer.json()["message"]
    assert "tokens=20:" in answer.json()["message"]
    # An orphan that is sent again is a replay, and so is the seal that was refused.
    assert results(store.post(delta.seal(orphan=True) + delta.seal_frame)) == ["replayed"] * 2


def test_deleting_a_turn_shows_in_what_was_built_on_it(store):
    uploads, _ = chain("hollow", turns=3)
    for upload in uploads:
        store.put(upload)
    assert store.get("/v1/trajectories/hollow").json()["coverage"]["complete"] is True
    store.http.delete("/v1/requests/hollow-1")

    coverage = store.get("/v1/trajectories/hollow").json()["coverage"]
    assert (coverage["complete"], coverage["orphans"]) == (False, 1)
    assert code(store.get("/v1/requests/hollow-2/routes")) == "deleted"
    batch = store.http.post(
        "/v1/fetch", json={"requests": [{"id": "hollow-2"}, {"id": "hollow-0"}]}
    )
    header, rows, _ = decode_routes(batch)
    assert [(failure.id, failure.code) for failure in header.failures] == [("hollow-2", "deleted")]
    assert np.array_equal(rows[0], uploads[0].experts)


def test_records_that_name_each_other_are_no_endless_chain(store):
    parent = make_upload("ring-a", seed=1, trajectory_id="ring", token_ids=np.arange(30))
    one = delta_on(parent, 20, request_id="ring-b")
    back = make_upload(
        "ring-a",
        seed=1,
        trajectory_id="ring",
        token_ids=one.token_ids,
        row_start=20,
        completion_len=3,
        parent=parent_ref(one, one.token_ids[:20]),
        upload_id=parent.upload_id,
    )
    store.post(back.chunk_frames[0])
    store.put(one)
    store.put(back)

    assert code(store.get("/v1/requests/ring-b/routes")) == "parent_mismatch"


@pytest.mark.parametrize("seed", range(3))
def test_any_tree_of_deltas_is_served_as_if_every_record_were_whole(store, seed):
    """Forks, gaps and arrivals in any order, against the rows that full records would have."""
    draw = np.random.default_rng(seed)
    name = f"tree-{seed}"
    uploads = [make_upload(f"{name}-0", seed=seed, trajectory_id=name, chunk_rows=4)]
    whole = [uploads[0].experts]
    for number in range(1, 12):
        before = int(draw.integers(number))
        start = int(draw.integers(1, len(whole[before]) + 1))
        fields = {"request_id": f"{name}-{number}", "seed": 100 * seed + number, "chunk_rows": 4}
        delta = delta_on(uploads[before], start, extra=int(draw.integers(4, 12)), **fields)
        uploads.append(delta)
        whole.append(np.concatenate([whole[before][:start], delta.experts]))
    # All are staged and any may be sealed first: a parent that is pending passes.
    store.post(b"".join(upload.chunk_frames[0] for upload in uploads))
    for number in draw.permutation(len(uploads)):
        store.put(uploads[number])

    for upload, rows in zip(uploads, whole, strict=True):
        start, stop = sorted(int(at) for at in draw.integers(0, len(rows) + 1, 2))
        url = f"/v1/requests/{upload.manifest.request_id}/routes"
        _, (found,), _ = decode_routes(store.get(url))
        _, (part,), _ = decode_routes(store.get(url, tokens=f"{start}:{stop}", layers="1:3"))
        assert np.array_equal(found, rows)
        assert np.array_equal(part, rows[start:stop, 1:3])
    assert store.get(f"/v1/trajectories/{name}").json()["coverage"]["complete"] is True
