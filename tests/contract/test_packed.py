"""Packed and sorted ids in a real store: sliced, verified, converted and refused as any others."""

import io

import numpy as np
import pytest
from support.frames import delta_on, make_upload

from routereplay.client import RouteStoreClient, stitch
from routereplay.wire import digest, frame_bytes, read_rows, write_rows
from routereplay.wire.errors import InvalidRoutes
from routereplay.wire.sorting import layout_of

SHAPE = {"num_layers": 12, "topk": 8, "num_experts": 384, "chunk_rows": 400}
CELL = {"bitpack": 9, "sorted": 8}


def refusal(store, upload, payload, **changes):
    """What the store says of a first chunk with this payload."""
    header = upload.chunk_header(0, digest=digest(payload), **changes)
    (result,) = store.post(frame_bytes(header, [payload])).json()["results"]
    return result


def ids_of(upload):
    """What was written."""
    manifest = upload.manifest
    found = (manifest.num_layers, manifest.topk, manifest.num_experts)
    return read_rows(upload.experts.tobytes(), manifest.dtype, *found)


@pytest.fixture(scope="module", params=["bitpack", "sorted"])
def packed(store, request):
    """A request of several chunks, each of several bands."""
    return store.put(
        make_upload(
            f"as-{request.param}",
            seed=5,
            prompt_len=990,
            completion_len=11,
            codec=request.param,
            **SHAPE,
        )
    )


@pytest.mark.parametrize(
    ("tokens", "layers"),
    [(None, None), (None, range(3, 6)), (range(390, 410), None), (range(7, 900), range(5, 12))],
)
def test_a_slice_is_read_as_the_ids_that_were_recorded(store, packed, tokens, layers):
    with RouteStoreClient(store.sidecar.url) as client:
        routes = client.fetch_request(packed.manifest.request_id, tokens=tokens, layers=layers)

    asked = ids_of(packed)
    asked = asked if tokens is None else asked[tokens.start : tokens.stop]
    asked = asked if layers is None else asked[:, layers.start : layers.stop]
    assert routes.experts.dtype == np.uint16
    assert not routes.experts.flags.writeable
    assert routes.in_order == (packed.manifest.dtype == "bitpack")
    assert np.array_equal(routes.experts, asked)


def test_what_people_read_is_converted_too(store, packed):
    ids, url = ids_of(packed), f"/v1/requests/{packed.manifest.request_id}"
    npz = np.load(io.BytesIO(store.get(f"{url}/routes", format="npz").content))
    asked = store.get(f"{url}/routes", format="json", tokens="0:3").json()
    load = store.get(f"{url}/experts").json()

    assert np.array_equal(npz["experts"], ids)
    assert asked["items"][0]["experts"] == ids[:3].tolist()
    assert load["counts"][2] == np.bincount(ids[:, 2].ravel(), minlength=384).tolist()


def test_as_many_bytes_are_stored_and_sent_as_cells_have(store, packed):
    answer = store.get(f"/v1/requests/{packed.manifest.request_id}/routes")
    beside = packed.token_ids.nbytes + 4096

    assert packed.experts.nbytes == ids_of(packed).nbytes * CELL[packed.manifest.dtype] // 16
    assert packed.experts.nbytes <= len(answer.content) <= packed.experts.nbytes + beside


@pytest.mark.parametrize("codec", ["bitpack", "sorted"])
def test_an_id_that_no_expert_has_is_refused(store, codec):
    few = {**SHAPE, "num_experts": 380}
    upload = make_upload(f"high-{codec}", seed=6, prompt_len=20, codec=codec, **few)
    wrong = write_rows(np.full((32, 12, 8), 380, "<u2"), codec, 380).tobytes()
    result = refusal(store, upload, wrong)

    assert (result["status"], result["code"]) == ("refused", InvalidRoutes.code)
    assert "expert id 380 in a model of 380" in result["message"]


def test_an_index_that_no_choice_of_experts_has_is_refused(store):
    upload = make_upload("no-index", seed=6, prompt_len=20, codec="sorted", **SHAPE)
    wrong = upload.chunk_rows(0).copy()
    wrong[3, 4, 0] = layout_of(8, 384).ways
    result = refusal(store, upload, wrong.tobytes())

    assert (result["status"], result["code"]) == ("refused", InvalidRoutes.code)
    assert "index 45" in result["message"]


@pytest.mark.parametrize(
    ("dtype", "model"), [("bitpack", (4, 128)), ("sorted", (2, 8)), ("sorted", (2, 32768))]
)
def test_a_way_that_gains_nothing_is_refused(store, dtype, model):
    topk, experts = model
    upload = make_upload(f"wide-{topk}", seed=6, num_layers=2, topk=topk, num_experts=experts)
    result = refusal(store, upload, upload.chunk_rows(0).tobytes(), dtype=dtype)

    assert result["code"] == InvalidRoutes.code
    assert f"no shorter as {dtype}" in result["message"]


@pytest.mark.parametrize("codec", ["bitpack", "sorted"])
def test_a_delta_on_a_record_that_is_written_otherwise_is_a_mismatch(store, codec):
    name = f"otherwise-{codec}"
    first = store.put(make_upload(name, seed=8, trajectory_id=name, **SHAPE))
    second = delta_on(first, 20, codec=codec, **SHAPE)
    results = store.post(second.body).json()["results"]

    assert results[-1]["code"] == "parent_mismatch"


def test_a_trajectory_says_whether_one_of_its_turns_is_without_order(store):
    first = store.put(make_upload("mixed-0", seed=8, trajectory_id="mixed", **SHAPE))
    tokens = np.concatenate([first.token_ids, [5, 6]])
    turn = {"trajectory_id": "mixed", "token_ids": tokens, "codec": "sorted"}
    store.put(make_upload("mixed-1", seed=10, **turn, **SHAPE))
    with RouteStoreClient(store.sidecar.url) as client:
        mixed = client.fetch_trajectory("mixed")

    assert [turn.in_order for turn in mixed.turns] == [True, False]
    assert not stitch(mixed).in_order
