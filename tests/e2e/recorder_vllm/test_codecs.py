"""A real server that packs or sorts what it records, over turns that are deltas.

The model has 8 of 32 experts: raw cells have 8 bytes, packed ones 5, sorted ones 4.
"""

import base64
import io
import itertools
import os

import numpy as np
import pytest
from support.hf_reference import Reference
from support.openai_api import Api

from routereplay.parity.tiny_moe import write_tiny_moe
from routereplay.parity.vllm_server import VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

LAYERS, TOPK, EXPERTS = 4, 8, 32
CELL_NBYTES = {"bitpack": 5, "sorted": 4}


@pytest.fixture(scope="module")
def wide_path(tmp_path_factory):
    return write_tiny_moe(tmp_path_factory.mktemp("wide"), num_experts=EXPERTS, topk=TOPK)


@pytest.fixture(
    scope="module",
    params=[
        "bitpack",
        pytest.param(
            "sorted",
            marks=pytest.mark.skipif(
                not os.environ.get("ROUTEREPLAY_TEST_BEHAVIOURS"),
                reason="./scripts/compatibility runs it",
            ),
        ),
    ],
)
def codec(request):
    return request.param


@pytest.fixture(scope="module")
def packing(wide_path, sink, plugin_path, codec, tmp_path_factory):
    environment = {
        "ROUTEREPLAY_STORE_URL": sink.url,
        "ROUTEREPLAY_CODEC": codec,
        "PYTHONPATH": plugin_path,
    }
    log_path = tmp_path_factory.mktemp("log") / "wide.log"
    with VllmServer(wide_path, log_path=log_path, environment=environment) as server:
        yield Api(server)


def test_rows_of_a_delta_trajectory_are_those_that_vllm_executed(packing, sink, wide_path, codec):
    session, prompt = {"X-Session-ID": f"turns-{codec}"}, list(range(40, 70))
    before, records = sum(sink.chunk_sizes), []
    for turn in range(4):
        answer = packing.complete(prompt, session, max_tokens=6)
        records.append(sink.wait(answer["id"]))
        prompt = [*prompt, *answer["choices"][0]["token_ids"], *range(80 + turn, 95)]
    tokens = records[-1].token_ids
    rows = np.concatenate([record.experts for record in records])

    assert {record.manifest.dtype for record in records} == {codec}
    assert records[0].manifest.parent is None
    for earlier, later in itertools.pairwise(records):
        assert later.manifest.parent.request_id == earlier.manifest.request_id
        assert later.manifest.row_start == earlier.manifest.num_tokens - 1
    assert sum(sink.chunk_sizes) - before == len(rows) * LAYERS * CELL_NBYTES[codec]
    assert np.array_equal(np.sort(rows, -1), Reference(wide_path).experts(tokens)[:-1])


def test_ids_are_in_vllms_order_unless_they_are_sorted(packing, sink, codec):
    """Its own array, which a response holds if it is asked for, is the reference."""
    asked = {"return_routed_experts": 1}
    answer = packing.complete(list(range(100, 140)), max_tokens=6, vllm_xargs=asked)
    native = np.load(io.BytesIO(base64.b64decode(answer["choices"][0]["routed_experts"])))
    rows = sink.wait(answer["id"]).experts

    assert (np.diff(native[:, 1:].astype(int)) < 0).any()
    assert np.array_equal(rows, np.sort(native) if codec == "sorted" else native)
