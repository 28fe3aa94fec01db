"""What the engine does under load and with its options on; one server for each set of options.

Run by ./scripts/compatibility against several releases: each server takes half a minute.
"""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest
import triton.backends
from support.engine_core import engine_core_of
from support.openai_api import Api

from routereplay.patches.vllm.releases import AUX_OUTPUT

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("ROUTEREPLAY_TEST_BEHAVIOURS"), reason="./scripts/compatibility runs it"
    ),
]

NGRAM = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}'


def prompts(count, length, seed=0):
    return np.random.default_rng(seed).integers(1, 500, (count, length)).tolist()


@pytest.fixture(scope="module")
def speculating(start, release):
    if release.has(AUX_OUTPUT):
        pytest.skip("Triton's interpreter cannot run the runner's ngram kernel")
    if "cpu" not in triton.backends.backends:
        pytest.skip("a CPU build needs Triton to reject drafts")
    # On Model Runner V1: V2 would be chosen where Triton is.
    with start("--speculative-config", NGRAM, VLLM_USE_V2_MODEL_RUNNER="0") as server:
        yield Api(server)


@pytest.fixture(scope="module")
def two_front_ends(start):
    with start("--api-server-count", "2") as server:
        yield Api(server)


@pytest.mark.behaviour("speculative decoding, ngram")
def test_rows_of_rejected_drafts_are_dropped(speculating, sink, check):
    asked = [prompt * 4 for prompt in prompts(6, 8, seed=3)]
    answers = [speculating.complete(prompt, max_tokens=24) for prompt in asked]
    drafted = speculating.metric("vllm:spec_decode_num_draft_tokens_total")
    accepted = speculating.metric("vllm:spec_decode_num_accepted_tokens_total")

    assert 0 < accepted < drafted, "drafts were accepted and rejected"
    for prompt, answer in zip(asked, answers, strict=True):
        check(sink.wait(answer["id"]), prompt, answer["choices"][0]["token_ids"])


@pytest.mark.behaviour("stop string with speculative decoding")
def test_a_stop_string_among_accepted_drafts_ends_the_record(speculating, sink, check):
    (base,) = prompts(1, 8, seed=3)
    free = speculating.complete(base * 4, max_tokens=24)["choices"][0]["text"]
    answer = speculating.complete(base * 4, max_tokens=24, stop=[free[6:8]])
    choice = answer["choices"][0]

    assert choice["finish_reason"] == "stop"
    check(sink.wait(answer["id"]), base * 4, choice["token_ids"])


@pytest.mark.behaviour("--api-server-count 2")
def test_two_front_ends_record_what_each_has_served(two_front_ends, sink, check):
    engines = set()
    for number, prompt in enumerate(prompts(240, 20, seed=4), 1):
        # A connection of its own: the kernel deals them out to the processes, and may well give
        # a dozen in a row to one of them.
        with contextlib.closing(two_front_ends.fresh()) as api:
            answer = api.complete(prompt, max_tokens=4)
        record = sink.wait(answer["id"])
        check(record, prompt, answer["choices"][0]["token_ids"])
        engines.add(record.manifest.engine_id)
        if number >= 12 and len(engines) == 2:
            break
    assert len(engines) == 2


@pytest.mark.behaviour("engine death")
def test_open_requests_of_an_engine_that_dies_are_lost_by_name(start, sink):
    with start() as server:
        api = Api(server)
        seen = threading.Event()
        ids = []

        def read():
            with contextlib.suppress(Exception):
                for event in api.events("/v1/completions", prompt="never ending", max_tokens=900):
                    ids.append(event["id"])
                    seen.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert seen.wait(60)
        time.sleep(0.3)
        os.kill(engine_core_of(server.pid), signal.SIGKILL)

        assert sink.wait_drop(ids[0]).reason == "engine_error"
        reader.join(30)
