"""Engines that are set up otherwise: an adapter, asynchronous scheduling, new weights.

Run by ./scripts/compatibility against several releases: each server takes half a minute.
"""

import contextlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.hf_reference import Reference
from support.lora_adapter import MODULES, write_adapter
from support.new_weights import retrained, taking_weights
from support.openai_api import Api
from support.plugin_path import path_of_other
from transformers import DynamicCache

from routereplay.patches.vllm.releases import WEIGHT_VERSIONS

from .conftest import CROWDED

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("ROUTEREPLAY_TEST_BEHAVIOURS"), reason="./scripts/compatibility runs it"
    ),
]

KERNEL_OF_CPU = """
def register():
    import dataclasses
    import vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method as method
    select = method.select_unquantized_moe_backend
    def without_adapters(moe_config):
        return select(dataclasses.replace(moe_config, is_lora_enabled=False))
    method.select_unquantized_moe_backend = without_adapters
"""
"""A plugin after which experts without adapters keep the CPU's own kernel: releases from 0.27 on
take Triton's for every model that has adapters, and a CPU build lacks a part of that."""

ASYNCHRONOUS = """
def register():
    from vllm.platforms.cpu import CpuPlatform
    original = CpuPlatform.check_and_update_config.__func__
    def check_and_update_config(cls, vllm_config):
        original(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True
    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
    from vllm.config.scheduler import SchedulerConfig
    scheduler_of = SchedulerConfig.get_scheduler_cls
    def get_scheduler_cls(self):
        found = scheduler_of(self)
        print("the engine's scheduler is", found.__name__, flush=True)
        return found
    SchedulerConfig.get_scheduler_cls = get_scheduler_cls
"""
"""A plugin after which a CPU build schedules as a GPU does: vLLM's own code, which the CPU's
platform switches off because a CPU gains nothing by it."""


@pytest.fixture(scope="module")
def adapted(start, moe_path, plugin_path, tmp_path_factory):
    """A server with an adapter of the attention: (client, reference of the adapted model)."""
    folder = tmp_path_factory.mktemp("adapter")
    merge = write_adapter(folder, moe_path)
    flags = ("--enable-lora", "--lora-modules", f"adapter={folder}", "--max-lora-rank", "8")
    plugin = tmp_path_factory.mktemp("kernel")
    path = path_of_other(plugin, "kernel_of_cpu", KERNEL_OF_CPU, plugin_path)
    with start(*flags, "--lora-target-modules", *MODULES, PYTHONPATH=path) as server:
        yield Api(server), Reference(moe_path, merge)


@pytest.fixture(scope="module")
def asynchronous(start, plugin_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("asynchronous")
    path = path_of_other(folder, "asynchronous", ASYNCHRONOUS, plugin_path)
    with start(*CROWDED, PYTHONPATH=path) as server:
        assert "the engine's scheduler is AsyncScheduler" in server.log_path.read_text()
        yield Api(server)


@pytest.mark.behaviour("LoRA")
def test_rows_of_an_adapter_are_those_of_the_adapted_model(adapted, sink, check, reference):
    api, changed = adapted
    prompt = list(range(101, 141))
    plain = api.complete(prompt, max_tokens=8)
    answer = api.complete(prompt, max_tokens=8, model="adapter")
    check(sink.wait(plain["id"]), prompt, plain["choices"][0]["token_ids"])
    record = sink.wait(answer["id"])
    tokens = [*prompt, *answer["choices"][0]["token_ids"]]
    rows = np.sort(record.experts, -1)

    assert record.manifest.model == "adapter"
    assert record.token_ids.tolist() == tokens
    assert np.array_equal(rows, changed.experts(tokens)[:-1])
    assert (rows != reference.experts(tokens)[:-1]).any(axis=-1).mean() > 0.1, "it changes routes"


@pytest.mark.behaviour("async scheduling")
def test_rows_are_those_of_their_tokens_when_steps_overlap(asynchronous, sink, check):
    generator = np.random.default_rng(5)
    asked = [
        generator.integers(1, 500, length).tolist() for length in generator.integers(3, 150, 24)
    ]

    def ask(number):
        # Some stop at a token: what the next step has begun for them comes to nothing.
        stop = {"stop_token_ids": list(range(1, 64))} if number % 3 == 0 else {}
        return asynchronous.complete(asked[number], max_tokens=60 + number, temperature=1.0, **stop)

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(ask, range(len(asked))))

    for prompt, answer in zip(asked, answers, strict=True):
        check(sink.wait(answer["id"]), prompt, answer["choices"][0]["token_ids"])


@pytest.fixture(scope="module")
def trained(start, release, plugin_path, tmp_path_factory):
    """A server that takes new weights while requests are paused."""
    if not release.has(WEIGHT_VERSIONS):
        pytest.skip("no token says which weights made it before 0.32")
    flags, variables = taking_weights(tmp_path_factory.mktemp("trained"), plugin_path)
    with start(*flags, **variables) as server:
        yield Api(server)


def change_in_mid_request(api, sink, prompt, version, weights, *, clear_cache):
    """Return the record of a request whose engine took new weights after some of its tokens."""
    events = api.events("/v1/completions", prompt=prompt, max_tokens=400, return_token_ids=True)
    first = list(itertools.islice(events, 5))
    with contextlib.closing(api.fresh()) as trainer:
        trainer.command(f"/pause?mode=keep&clear_cache={clear_cache}")
        path = str(weights / "model.safetensors")
        trainer.command("/collective_rpc", method="take_weights", args=[path])
        trainer.command("/update_weight_version", new_version=version)
        trainer.command("/resume")
    assert len(list(events)) > 50, "it went on"
    return sink.wait(first[0]["id"])


@pytest.mark.behaviour("new weights in mid-request")
def test_each_span_has_the_rows_of_the_weights_that_it_names(
    trained, sink, reference, moe_path, tmp_path
):
    """With the cache kept, new weights go on from the old ones' keys and values; with it cleared,
    vLLM computes all tokens anew, and the rows that old tokens were sampled from must stay."""
    path = retrained(moe_path, tmp_path / "next")
    new = Reference(path)
    trained.command("/update_weight_version", new_version="step-1")
    prompts = [list(range(start, start + 20)) for start in (11, 211)]
    for prompt, version, folder, models, clear_cache in (
        (prompts[0], "step-2", path, (reference, new), False),
        (prompts[1], "step-3", moe_path, (new, reference), True),
    ):
        record = change_in_mid_request(
            trained, sink, prompt, version, folder, clear_cache=clear_cache
        )
        before, after = record.manifest.policy_versions
        tokens, rows, change = record.token_ids, np.sort(record.experts, -1), after.start
        cache = DynamicCache()
        rows_before = models[0].experts(tokens[:change], cache)
        anew = models[1].experts(tokens)[change:-1]
        gone_on = models[1].experts(tokens[change:], cache)[:-1]

        assert (before.start, after.version, after.stop) == (0, version, len(tokens))
        assert before.version == f"step-{int(version[-1]) - 1}"
        assert before.stop == change > len(prompt)
        assert np.array_equal(rows[:change], rows_before)
        assert np.array_equal(rows[change:], anew if clear_cache else gone_on)
        assert not np.array_equal(anew, gone_on), "the truths differ"
