"""The recorder on a GPU, in bfloat16, with CUDA graphs: rows are those of their tokens.

Two truths that do not depend on the recorder: vLLM's own native rows of the same request, bit
for bit, and a float32 forward of transformers, from which bfloat16 differs where experts are
nearly tied (`near_ties`).
"""

import base64
import io
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from gpu.near_ties import assert_rows_are_of_their_tokens
from gpu.recorded_servers import DEVICES, ON_CPU, Fleet
from support.hf_reference import Reference
from support.lora_adapter import write_adapter
from support.openai_api import Api
from support.plugin_path import path_of_plugin
from support.record_sink import Sink

from routereplay.parity.tiny_moe import write_tiny_moe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.timeout(420),
    pytest.mark.skipif(DEVICES < 1, reason="no CUDA device"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM"),
]

LAYERS, DENSE = 8, (0,)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    # The pruned attention kernels are those of this width.
    return write_tiny_moe(folder, num_layers=LAYERS, dense_layers=DENSE, head_dim=128)


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """(folder, what merges it)"""
    folder = tmp_path_factory.mktemp("adapter")
    return folder, write_adapter(folder, model)


@pytest.fixture(scope="module")
def sink():
    sink = Sink()
    yield sink
    sink.stop()
    assert sink.problems == []


@pytest.fixture(scope="module")
def fleet(model, adapter, sink, tmp_path_factory):
    logs = Path(os.environ.get("ROUTEREPLAY_TEST_LOGS") or tmp_path_factory.mktemp("logs"))
    path = path_of_plugin(tmp_path_factory.mktemp("dist"))
    fleet = Fleet(model, adapter[0], sink.url, path, logs)
    yield fleet
    fleet.stop()


@pytest.fixture(scope="module")
def reference(model):
    return Reference(model)


@pytest.fixture
def same(sink, reference):
    """Compare a record with the tokens of the client, vLLM's native rows and the reference."""

    def compare(request_id, prompt, choice, truth=reference, native=True):
        record = sink.wait(request_id, choice["index"])
        tokens = [*prompt, *choice["token_ids"]]
        assert record.token_ids.tolist() == tokens
        start = record.manifest.row_start
        if native:
            given = base64.b64decode(choice["routed_experts"])
            assert np.array_equal(record.experts, np.load(io.BytesIO(given), allow_pickle=False))
        assert_rows_are_of_their_tokens(record.experts, truth.logits(tokens)[start:-1])
        return record

    return compare


def ask(api, prompt, **options):
    answer = api.complete(prompt, vllm_xargs={"return_routed_experts": 1}, **options)
    return answer["id"], answer["choices"][0]


def prompts(count, length, seed=0):
    return np.random.default_rng(seed).integers(1, 500, (count, length)).tolist()


@pytest.fixture(
    params=[
        pytest.param("overlapping", marks=pytest.mark.behaviour("async scheduling")),
        pytest.param("one step at a time", marks=pytest.mark.behaviour("async scheduling off")),
    ]
)
def crowded(request, fleet):
    """A server with CUDA graphs and a small cache, with async scheduling and without."""
    server = fleet[request.param]
    log = server.log_path.read_text()
    if not ON_CPU:
        assert (
            "Asynchronous scheduling is "
            + ("enabled" if request.param == "overlapping" else "disabled")
            in log
        )
        assert "Graph capturing finished" in log
    return Api(server)


@pytest.mark.behaviour("CUDA graphs")
def test_the_canary_proves_routes_that_come_out_of_a_graph(crowded):
    assert crowded.metric("routereplay_recorder_canary", state="proven") == 1


@pytest.mark.behaviour("chunked prefill", "prefix-cache hit of a chunked prompt")
def test_a_prompt_in_chunks_and_again_from_the_prefix_cache(crowded, same):
    (prompt,) = prompts(1, 300, seed=1)
    for _ in range(2):
        request_id, choice = ask(crowded, prompt, max_tokens=20)
        same(request_id, prompt, choice)

    assert crowded.metric("vllm:prefix_cache_hits_total") >= 256


@pytest.mark.behaviour("preemption and recompute")
def test_requests_that_are_preempted(crowded, same):
    asked = prompts(16, 130, seed=2)
    before = crowded.metric("vllm:num_preemptions_total")
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda prompt: ask(crowded, prompt, max_tokens=120), asked))

    assert crowded.metric("vllm:num_preemptions_total") > before
    for prompt, (request_id, choice) in zip(asked, answers, strict=True):
        same(request_id, prompt, choice)


@pytest.mark.behaviour("stop token", "native routes only on request")
def test_requests_that_stop_while_their_next_step_runs(crowded, same):
    asked = prompts(16, 24, seed=3)
    stop = list(range(1, 40))

    def one(prompt):
        return ask(crowded, prompt, max_tokens=60, stop_token_ids=stop, temperature=1.0)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, asked))
    reasons = [choice["finish_reason"] for _, choice in answers]

    assert reasons.count("stop") > 4
    for prompt, (request_id, choice) in zip(asked, answers, strict=True):
        same(request_id, prompt, choice)


@pytest.mark.behaviour("/v1/completions, streamed", "client disconnect")
def test_a_stream_and_a_client_that_hangs_up(crowded, sink, reference):
    (prompt,) = prompts(1, 20, seed=4)
    events = crowded.events("/v1/completions", prompt=prompt, max_tokens=900)
    first = next(events)
    for _ in range(10):
        next(events)
    events.close()
    record = sink.wait(first["id"])

    assert record.manifest.finish_reason in {"abort", "length"}
    assert record.manifest.completion_len >= 11
    assert_rows_are_of_their_tokens(record.experts, reference.logits(record.token_ids)[:-1])


@pytest.mark.behaviour("LoRA")
def test_rows_of_an_adapter_are_those_of_the_adapted_model(fleet, same, model, adapter, reference):
    api, changed = Api(fleet["adapter"]), Reference(model, adapter[1])
    for number, prompt in enumerate(prompts(6, 40, seed=5)):
        adapted = number % 2 == 0
        options = {"model": "adapter"} if adapted else {}
        request_id, choice = ask(api, prompt, max_tokens=24, **options)
        record = same(request_id, prompt, choice, truth=changed if adapted else reference)
        if adapted:
            assert record.manifest.model == "adapter"
            others = reference.experts(record.token_ids)[:-1]
            equal = (np.sort(record.experts, -1) == others).all(axis=-1)
            assert equal[:, len(DENSE) :].mean() < 0.6, "the adapter changes routes"


@pytest.mark.behaviour("speculative decoding, ngram")
@pytest.mark.skipif(ON_CPU, reason="a CPU build needs Triton to reject drafts")
def test_rows_of_rejected_drafts_are_dropped(fleet, same):
    api = Api(fleet["speculating"])
    asked = [prompt * 4 for prompt in prompts(8, 8, seed=6)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda prompt: ask(api, prompt, max_tokens=40), asked))
    drafted = api.metric("vllm:spec_decode_num_draft_tokens_total")
    accepted = api.metric("vllm:spec_decode_num_accepted_tokens_total")

    assert 0 < accepted < drafted, "drafts were accepted and rejected"
    for prompt, (request_id, choice) in zip(asked, answers, strict=True):
        same(request_id, prompt, choice)


@pytest.mark.behaviour("data parallel 2")
@pytest.mark.skipif(DEVICES < 2, reason="needs two CUDA devices")
def test_each_rank_of_two_has_the_rows_of_its_own_requests(fleet, same):
    api = Api(fleet["two ranks"])
    asked = prompts(24, 30, seed=7)

    def one(number):
        options = {"max_tokens": 8 + number, "vllm_xargs": {"return_routed_experts": 1}}
        header = {"X-data-parallel-rank": str(number % 2)}
        return api.complete(asked[number], headers=header, **options)

    # At once, so that the ranks have steps of different sizes together.
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(one, range(len(asked))))

    assert api.metric("routereplay_recorder_canary", state="proven") == 1
    for rank in ("0", "1"):
        assert api.metric("vllm:request_success_total", engine=rank) >= 12
    for prompt, answer in zip(asked, answers, strict=True):
        same(answer["id"], prompt, answer["choices"][0])
