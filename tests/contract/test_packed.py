"""Packed ids in a real store: sliced, verified, converted and refused as any others."""

import io

import numpy as np
import pytest
from support.frames import delta_on, make_upload

from routereplay.client import RouteStoreClient
from routereplay.wire import bitpack, digest, frame_bytes, read_rows
from routereplay.wire.errors import InvalidRoutes

SHAPE = {"num_layers": 12, "topk": 8, "num_experts": 384, "chunk_rows": 400}


def refusal(store, upload, payload):
    """What the store says of a first chunk with this payload."""
    header = upload.chunk_header(0, digest=digest(payload))
    (result,) = store.post(frame_bytes(header, [payload])).json()["results"]
    return result


def ids_of(upload):
    """What was packed."""
    manifest = upload.manifest
    found = (manifest.num_layers, manifest.topk, manifest.num_experts)
    return read_rows(upload.experts.tobytes(), "bitpack", *found)


@pytest.fixture(scope="module")
def packed(store):
    """A request of several chunks, each of several bands."""
    return store.put(
        make_upload("packed", seed=5, prompt_len=990, completion_len=11, packed=True, **SHAPE)
    )


@pytest.mark.parametrize(
    ("tokens", "layers"),
    [(None, None), (None, range(3, 6)), (range(390, 410), None), (range(7, 900), range(5, 12))],
)
def test_a_slice_is_unpacked_to_the_ids_that_were_recorded(store, packed, tokens, layers):
    with RouteStoreClient(store.sidecar.url) as client:
        routes = client.fetch_request("packed", tokens=tokens, layers=layers)

    asked = ids_of(packed)
    asked = asked if tokens is None else asked[tokens.start : tokens.stop]
    asked = asked if layers is None else asked[:, layers.start : layers.stop]
    assert routes.experts.dtype == np.uint16
    assert not routes.experts.flags.writeable
    assert np.array_equal(routes.experts, asked)


def test_what_people_read_is_unpacked_too(store, packed):
    ids = ids_of(packed)
    npz = np.load(io.BytesIO(store.get("/v1/requests/packed/routes", format="npz").content))
    asked = store.get("/v1/requests/packed/routes", format="json", tokens="0:3").json()
    load = store.get("/v1/requests/packed/experts").json()

    assert np.array_equal(npz["experts"], ids)
    assert asked["items"][0]["experts"] == ids[:3].tolist()
    assert load["counts"][2] == np.bincount(ids[:, 2].ravel(), minlength=384).tolist()


def test_nine_sixteenths_of_the_bytes_are_stored_and_sent(store, packed):
    answer = store.get("/v1/requests/packed/routes")
    beside = packed.token_ids.nbytes + 4096

    assert packed.experts.nbytes == ids_of(packed).nbytes * 9 // 16
    assert packed.experts.nbytes <= len(answer.content) <= packed.experts.nbytes + beside


def test_a_packed_id_that_no_expert_has_is_refused(store):
    upload = make_upload("packed-high", seed=6, prompt_len=20, packed=True, **SHAPE)
    wrong = bitpack(np.full((32, 12, 8), 384, "<u2"), 384).tobytes()
    result = refusal(store, upload, wrong)

    assert (result["status"], result["code"]) == ("refused", InvalidRoutes.code)
    assert "expert id 384 in a model of 384" in result["message"]


def test_packing_that_gains_nothing_is_refused(store):
    upload = make_upload("packed-wide", seed=6, num_layers=2, topk=4, num_experts=128, packed=True)
    result = refusal(store, upload, upload.chunk_rows(0).tobytes())

    assert result["code"] == InvalidRoutes.code
    assert "no shorter" in result["message"]


def test_a_delta_on_a_record_that_is_written_otherwise_is_a_mismatch(store):
    first = store.put(make_upload("packed-t0", seed=8, trajectory_id="packed-t", **SHAPE))
    second = delta_on(first, 20, packed=True, **SHAPE)
    results = store.post(second.body).json()["results"]

    assert results[-1]["code"] == "parent_mismatch"
