"""What a recorder sends is staged, sealed once, and never changed after."""

import numpy as np
import pytest
from support.frames import make_upload
from support.route_store import decode_routes, results

from routereplay.wire import Routes, digest, encode_frame, frame_bytes
from routereplay.wire.frame import PREFIX_BYTES


def test_staged_chunks_are_pending_and_not_served(store):
    upload = make_upload("staged-only")

    assert results(store.post(b"".join(upload.chunk_frames))) == ["staged"] * 4
    answer = store.get("/v1/requests/staged-only/routes")
    assert (answer.status_code, answer.json()["code"]) == (404, "pending")
    described = store.get("/v1/requests/staged-only").json()
    assert [choice["state"] for choice in described["choices"]] == ["pending"]


def test_a_seal_makes_every_row_and_token_visible(store):
    upload = make_upload("sealed-whole", seed=1)
    store.post(b"".join(upload.chunk_frames))

    assert results(store.post(upload.seal_frame)) == ["sealed"]
    header, (rows,), (tokens,) = decode_routes(store.get("/v1/requests/sealed-whole/routes"))
    assert np.array_equal(rows, upload.experts)
    assert np.array_equal(tokens, upload.token_ids)
    assert header.items[0].manifest == upload.manifest
    assert header.items[0].rows_digest == b""


def test_chunks_and_seal_travel_in_one_body(store):
    upload = make_upload("one-body", seed=2)

    assert results(store.post(upload.body)) == [*["staged"] * 4, "sealed"]


def test_the_same_body_again_is_a_replay_and_changes_nothing(store):
    upload = store.put(make_upload("again", seed=3))
    before = store.contents()

    response = store.post(upload.body)
    assert (response.status_code, results(response)) == (200, ["replayed"] * 5)
    assert store.contents() == before


def test_other_content_under_a_sealed_key_is_a_conflict_and_changes_nothing(store):
    first = store.put(make_upload("contested", seed=4))
    second = make_upload("contested", seed=5)
    store.post(b"".join(second.chunk_frames))
    before = store.contents()

    response = store.post(second.seal_frame)
    assert (response.status_code, results(response)) == (409, ["conflict"])
    assert store.contents() == before
    _, (rows,), _ = decode_routes(store.get("/v1/requests/contested/routes"))
    assert np.array_equal(rows, first.experts)


def test_another_trajectory_cannot_take_a_sealed_request_id(store):
    first = store.put(make_upload("one-name", seed=4, trajectory_id="first-owner"))
    second = make_upload("one-name", seed=5, trajectory_id="second-owner")

    assert results(store.post(second.body))[-1] == "conflict"
    _, (rows,), _ = decode_routes(store.get("/v1/requests/one-name/routes"))
    assert np.array_equal(rows, first.experts)


def test_two_live_requests_with_one_id_do_not_mix_and_the_first_seal_wins(store):
    first, second = make_upload("shared-id", seed=6), make_upload("shared-id", seed=7)
    for mine, yours in zip(first.chunk_frames, second.chunk_frames, strict=True):
        store.post(mine + yours)

    assert results(store.post(second.seal_frame + first.seal_frame)) == ["sealed", "conflict"]
    _, (rows,), _ = decode_routes(store.get("/v1/requests/shared-id/routes"))
    assert np.array_equal(rows, second.experts)


def test_a_position_of_an_upload_cannot_be_staged_with_other_content(store):
    first, other = make_upload("moved", seed=8), make_upload("moved", seed=9, upload_id="0_moved-8")
    store.post(first.chunk_frames[0])
    before = store.contents()

    response = store.post(other.chunk_frames[0])
    assert (response.status_code, results(response)) == (409, ["conflict"])
    assert store.contents() == before


@pytest.mark.parametrize("absent", [0, 2, 3])
def test_a_seal_without_one_of_its_chunks_is_incomplete_and_shows_nothing(store, absent):
    upload = make_upload(f"without-{absent}", seed=10)
    frames = [frame for seq, frame in enumerate(upload.chunk_frames) if seq != absent]
    store.post(b"".join(frames))
    before = store.contents()

    response = store.post(upload.seal_frame)
    assert (response.status_code, results(response)) == (409, ["incomplete"])
    assert store.contents() == before
    assert store.get(f"/v1/requests/without-{absent}/routes").json()["code"] == "pending"


def test_a_seal_whose_staged_bytes_were_lost_is_incomplete(store):
    upload = make_upload("lost-bytes", seed=11)
    store.post(b"".join(upload.chunk_frames))
    (lost, *_) = store.engine.keys("rr:*:b:0_lost-bytes-11:c2:*")
    store.engine.delete(lost)

    assert results(store.post(upload.seal_frame)) == ["incomplete"]


def test_a_seal_that_lists_other_rows_than_were_staged_is_incomplete(store):
    upload = make_upload("relisted", seed=12)
    store.post(b"".join(upload.chunk_frames))
    chunks = upload.manifest.chunks
    swapped = upload.changed(chunks=(chunks[1], chunks[0], *chunks[2:]))

    assert results(store.post(swapped.seal_frame)) == ["incomplete"]


def test_a_seal_with_another_shape_of_the_same_bytes_is_incomplete(store):
    upload = make_upload("reshaped", seed=13)
    store.post(b"".join(upload.chunk_frames))
    reshaped = upload.changed(num_layers=2, topk=4)

    assert results(store.post(reshaped.seal_frame)) == ["incomplete"]


def test_a_request_without_a_row_can_be_sealed(store):
    upload = make_upload("no-rows", seed=14, prompt_len=1, completion_len=0)

    assert results(store.post(upload.body)) == ["sealed"]
    _, (rows,), (tokens,) = decode_routes(store.get("/v1/requests/no-rows/routes"))
    assert (rows.shape, tokens.tolist()) == ((0, 4, 2), upload.token_ids.tolist())


def test_a_chunk_longer_than_a_value_is_split_and_comes_back_whole(store):
    upload = make_upload(
        "long", seed=15, prompt_len=40_000, num_layers=40, topk=2, chunk_rows=30_000
    )
    store.put(upload)

    values = store.engine.keys("rr:*:b:0_long-15:c0:*")
    lengths = [store.engine.strlen(value) for value in values]
    assert len(values) > 1
    assert max(lengths) <= 1024 * 1024
    assert sum(lengths) == 30_000 * 80
    _, (rows,), (tokens,) = decode_routes(store.get("/v1/requests/long/routes"))
    assert np.array_equal(rows, upload.experts)
    assert np.array_equal(tokens, upload.token_ids)


def test_ids_of_more_than_256_experts_survive(store):
    upload = store.put(make_upload("wide", seed=16, num_experts=512))

    _, (rows,), _ = decode_routes(store.get("/v1/requests/wide/routes"))
    assert rows.dtype == np.uint16
    assert np.array_equal(rows, upload.experts)


def test_choices_of_a_request_are_records_of_their_own(store):
    uploads = [store.put(make_upload("twins", seed=17 + n, choice=n)) for n in range(2)]

    for number, upload in enumerate(uploads):
        _, (rows,), _ = decode_routes(store.get("/v1/requests/twins/routes", choice=number))
        assert np.array_equal(rows, upload.experts)
    assert store.get("/v1/requests/twins/routes", choice=2).json()["code"] == "not_found"


def test_a_refused_frame_does_not_refuse_its_neighbours(store):
    good, bad = make_upload("good-one", seed=20), make_upload("bad-one", seed=21)
    body = good.body + bad.chunk_frame(0, digest=bytes(16)) + bad.seal_frame

    response = store.post(body)
    assert response.status_code == 400
    assert results(response) == [*["staged"] * 4, "sealed", "malformed_frame", "incomplete"]


def test_a_body_that_brings_all_of_a_request_asks_the_engine_for_nothing(store):
    def calls(name):
        return store.engine.info("commandstats").get(f"cmdstat_{name}", {"calls": 0})["calls"]

    store.put(make_upload("warm-up", seed=22))
    before = [calls(name) for name in ("evalsha", "hgetall", "set")]
    store.put(make_upload("all-at-once", seed=23))
    after = [calls(name) for name in ("evalsha", "hgetall", "set")]

    # Four chunks, one name and the seal; four values, the token ids and the name again.
    assert [now - then for now, then in zip(after, before, strict=True)] == [6, 0, 6]


def test_frames_count_in_the_order_of_their_body(store):
    early, given_up = make_upload("sealed-early", seed=24), make_upload("given-up", seed=25)
    body = early.seal_frame + b"".join(early.chunk_frames) + early.seal_frame
    response = store.post(body)
    assert results(response) == ["incomplete", *["staged"] * 4, "sealed"]

    first, *rest = given_up.chunk_frames
    response = store.post(first + given_up.drop_frame() + b"".join(rest) + given_up.seal_frame)
    assert results(response) == ["staged", "noted", *["dropped"] * 3, "incomplete"]


def test_many_requests_in_one_body_are_all_stored(store):
    uploads = [make_upload(f"crowd-{number}", seed=number) for number in range(30)]
    body = b"".join(upload.body for upload in uploads)

    assert set(results(store.post(body))) == {"staged", "sealed"}
    for upload in uploads:
        path = f"/v1/requests/{upload.manifest.request_id}/routes"
        _, (rows,), (tokens,) = decode_routes(store.get(path))
        assert np.array_equal(rows, upload.experts)
        assert np.array_equal(tokens, upload.token_ids)


def test_an_alias_leads_to_the_record(store):
    upload = store.put(make_upload("chatcmpl-abc", seed=22, aliases=("abc",)))

    _, (rows,), _ = decode_routes(store.get("/v1/requests/abc/routes"))
    assert np.array_equal(rows, upload.experts)


def test_an_id_in_a_path_is_normalised_like_the_recorder_does(store):
    from routereplay.wire import normalize_id

    upload = store.put(make_upload(normalize_id("my id, with {braces}"), seed=23))

    _, (rows,), _ = decode_routes(store.get("/v1/requests/my id, with {braces}/routes"))
    assert np.array_equal(rows, upload.experts)


def _broken_bodies():
    upload = make_upload("never-stored", seed=24)
    chunk = upload.chunk_frames[0]
    chunk_at = upload.chunk_frame
    flipped = bytearray(chunk)
    flipped[-60] ^= 1
    header = bytearray(chunk)
    header[PREFIX_BYTES + 3] ^= 1
    other_version = bytearray(chunk)
    other_version[4] = 9
    high = np.full_like(upload.chunk_rows(0), 60)
    too_high = frame_bytes(upload.chunk_header(0, digest=digest(high.data)), [high.data])
    short = upload.chunk_rows(0)[:-1]
    too_short = frame_bytes(upload.chunk_header(0, digest=digest(short.data)), [short.data])
    answer = b"".join(bytes(part) for part in encode_frame(Routes(items=())))
    return {
        "empty": (b"", 400),
        "text": (b"hello, this is not a frame at all, not even close", 400),
        "cut short": (chunk[:-64], 400),
        "followed by rubbish": (chunk + b"x" * 64, 400),
        "good frame, then a cut one": (chunk + chunk[:-64], 400),
        "flipped payload bit": (bytes(flipped), 400),
        "flipped header bit": (bytes(header), 400),
        "other wire version": (bytes(other_version), 400),
        "an answer of the store": (answer, 400),
        "expert id out of range": (too_high, 422),
        "fewer rows than announced": (too_short, 400),
        "unknown dtype": (chunk_at(0, dtype="float3"), 400),
        "uint8 for 300 experts": (chunk_at(0, num_experts=300), 422),
        "no layers": (chunk_at(0, num_layers=0), 400),
        "negative rows": (chunk_at(0, rows=-10), 400),
        "negative position": (chunk_at(0, seq=-1), 400),
        "absurd shape": (chunk_at(0, num_layers=1 << 40), 400),
        "bad request id": (chunk_at(0, request_id="a{b}c"), 400),
        "bad trajectory id": (chunk_at(0, trajectory_id="../up"), 400),
        "rows do not add up": (upload.changed(rows=31).seal_frame, 409),
        "more rows than tokens": (upload.changed(row_start=20).seal_frame, 422),
        "chunk bytes do not add up": (upload.changed(num_layers=5).seal_frame, 400),
        "fewer tokens than announced": (upload.changed(completion_len=14).seal_frame, 400),
        "wrong token digest": (upload.changed(token_digest=bytes(16)).seal_frame, 400),
        "bad alias of a chunk": (chunk_at(0, aliases=("{i:x}",)), 400),
        "bad alias": (upload.changed(aliases=("{i:x}",)).seal_frame, 400),
        "drop without a reason": (upload.drop_frame(""), 400),
    }


BROKEN = _broken_bodies()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_body_is_refused_and_nothing_of_it_is_stored(store, name):
    body, status = BROKEN[name]
    before = store.contents()

    response = store.post(body)
    assert response.status_code == status, response.text
    assert store.contents() == before
    assert store.get("/v1/requests/never-stored").json()["code"] == "not_found"


def test_every_key_has_a_time_to_live(store):
    store.put(make_upload("mortal", seed=30, trajectory_id="mortals", aliases=("mortal-alias",)))
    store.post(make_upload("mortal-pending", seed=31).chunk_frames[0])
    store.post(make_upload("mortal-dropped", seed=32, trajectory_id="mortals").drop_frame())
    store.put(make_upload("mortal-deleted", seed=33))
    store.http.delete("/v1/requests/mortal-deleted")

    keys = list(store.engine.scan_iter(count=1000))
    assert len(keys) > 10
    assert [key for key in keys if store.engine.ttl(key) <= 0] == []


def test_values_outlive_their_record(store):
    store.put(make_upload("outlived", seed=34))
    (record,) = store.engine.keys("rr:*:m:outlived:0")
    values = store.engine.keys("rr:*:b:0_outlived-34:*")

    assert len(values) == 5
    assert min(store.engine.ttl(value) for value in values) > store.engine.ttl(record)


def test_a_late_chunk_does_not_shorten_the_life_of_what_is_sealed(store):
    upload = store.put(make_upload("late", seed=35))
    values = store.engine.keys("rr:*:b:0_late-35:*")
    store.post(upload.chunk_frames[1])

    assert min(store.engine.ttl(value) for value in values) > 3600
