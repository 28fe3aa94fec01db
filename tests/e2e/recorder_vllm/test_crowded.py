"""A small cache and small steps: what the engine does to requests changes none of their rows."""

import functools
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
