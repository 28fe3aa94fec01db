"""A small cache and small steps: what the engine does to requests changes none of their rows."""

import base64
import functools
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def prompts(count, length, seed=0):
    return np.random.default_rng(seed).integers(1, 500, (count, length)).tolist()


@pytest.mark.behaviour("chunked prefill")
def test_a_prompt_that_is_prefilled_in_chunks_is_recorded_whole(api, sink, check):
    (prompt,) = prompts(1, 300)
    answer = api.complete(prompt, max_tokens=4)

    check(sink.wait(answer["id"]), prompt, answer["choices"][0]["token_ids"])


@pytest.mark.behaviour("prefix-cache hit of a chunked prompt")
def test_what_the_cache_has_is_recorded_again(api, sink, check):
    (prompt,) = prompts(1, 200, seed=1)
    api.complete(prompt, max_tokens=2)
    hits = api.metric("vllm:prefix_cache_hits_total")
    answer = api.complete([*prompt, 7, 8, 9], max_tokens=4)

    assert api.metric("vllm:prefix_cache_hits_total") > hits
    check(sink.wait(answer["id"]), [*prompt, 7, 8, 9], answer["choices"][0]["token_ids"])


@pytest.mark.behaviour("preemption and recompute")
def test_a_preempted_request_keeps_the_rows_that_its_tokens_were_sampled_from(api, sink, check):
    before = api.metric("vllm:num_preemptions_total")
    # On a busy machine requests may come so slowly that too few run at a time: then longer ones.
    for attempt in range(5):
        asked = prompts(16, 64, seed=20 + attempt)
        ask = functools.partial(api.complete, max_tokens=80 * (attempt + 1))
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(pool.map(ask, asked))
        for prompt, answer in zip(asked, answers, strict=True):
            check(sink.wait(answer["id"]), prompt, answer["choices"][0]["token_ids"])
        if api.metric("vllm:num_preemptions_total") > before:
            break

    assert api.metric("vllm:num_preemptions_total") > before


@pytest.mark.behaviour("many requests at a time")
def test_rows_that_travel_together_come_to_their_own_requests(api, sink, check, moe_server):
    asked = prompts(12, 20, seed=50)

    def ask(number):
        native = {"return_routed_experts": 1} if number % 3 == 0 else {}
        return api.complete(asked[number], max_tokens=30 + number, vllm_xargs=native)

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(ask, range(len(asked))))
    for number, (prompt, answer) in enumerate(zip(asked, answers, strict=True)):
        (choice,) = answer["choices"]
        record = sink.wait(answer["id"])
        check(record, prompt, choice["token_ids"])
        if number % 3 == 0:
            routes = np.load(io.BytesIO(base64.b64decode(choice["routed_experts"])))
            assert np.array_equal(routes, record.experts)
    assert "the engine sends the rows of a step as one array" in moe_server.log_path.read_text()
