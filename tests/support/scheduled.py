"""vLLM's own scheduler over made-up steps: its outputs with our part of the engine, or without.

For a process of its own, which is patched.
"""

import random

import numpy as np

LAYERS, TOPK = 4, 4
REQUESTS = 24


def compared(model):
    """Run the same requests through vLLM alone and through our part of its engine.

    Returns:
        Whether all outputs are equal, how many they are, how many requests were preempted, how
        many steps were taken in one operation, and how many could have been.
    """
    from vllm.v1.core.sched.scheduler import Scheduler

    from routereplay.patches.vllm import scheduler
    from routereplay.patches.vllm.install import install

    install()
    taken = []

    def take(*step):
        taken.append(_take(*step))
        return taken[-1]

    _take, scheduler.take_decoded = scheduler.take_decoded, take
    names = ("add_request", "update_from_output", "_update_after_schedule")
    patched = {name: getattr(Scheduler, name) for name in names}
    logs = []
    for ours in (False, True):
        for name, function in patched.items():
            setattr(Scheduler, name, function if ours else function.__wrapped__)
        logs.append(_outputs(_scheduler(model)))
    (alone, preempted), (through, _) = logs
    at_once = sum(one is not None for one in taken)
    return [alone == through, len(alone), preempted, at_once, len(taken)]


def _scheduler(model):
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = EngineArgs(
        model=str(model),
        max_num_seqs=12,
        max_num_batched_tokens=128,
        max_model_len=512,
        block_size=16,
        enable_prefix_caching=False,
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = blocks = 20
    spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=16, dtype=torch.float32)
    return AsyncScheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=16,
        log_stats=True,
    )


def _outputs(scheduler):
    """Run requests to their end; each step's result comes after the next one is planned."""
    from routereplay.patches.vllm.gathered import Scatter

    draw, scatter = random.Random(1), Scatter({})
    requests = list(_requests(draw))
    waiting, planned, seen = requests.copy(), [], []
    while waiting or scheduler.requests or planned:
        while waiting and draw.random() < 0.4:
            scheduler.add_request(waiting.pop())
        plan = scheduler.schedule()
        if plan.num_scheduled_tokens:
            planned.append((plan, _whole(scheduler, plan)))
        while len(planned) > bool(plan.num_scheduled_tokens):
            plan_then, whole = planned.pop(0)
            result = _result(plan_then, whole, draw)
            for step in scheduler.update_from_output(plan_then, result).values():
                scatter.give(step.outputs)
                seen += [_seen(output) for output in step.outputs]
    return seen, sum(request.num_preemptions for request in requests)


def _requests(draw):
    from vllm import SamplingParams
    from vllm.v1.request import Request

    from routereplay.patches.vllm.gathered import ASKS

    for number in range(REQUESTS):
        prompt = draw.choice([1, 3, 40, 40, 200])
        params = SamplingParams(
            max_tokens=draw.choice([1, 5, 60, 60]),
            ignore_eos=True,
            routed_experts_prompt_start=draw.choice([None, 0, prompt // 2, prompt - 1]),
            extra_args={ASKS: True},
        )
        yield Request(f"request-{number}", [5] * prompt, params, None)


def _whole(scheduler, plan):
    """Of which requests a step computes the last token that they have."""
    requests = [scheduler.requests[name] for name in plan.num_scheduled_tokens]
    return {one.request_id for one in requests if one.num_computed_tokens >= one.num_tokens}


def _result(plan, whole, draw):
    from vllm.v1.outputs import ModelRunnerOutput, RoutedExpertsLists

    names, tokens = list(plan.num_scheduled_tokens), plan.total_num_scheduled_tokens
    draw.shuffle(names)  # The model runner has an order of its own.
    rows = np.random.default_rng(draw.getrandbits(32)).integers(0, 16, (tokens, LAYERS, TOPK))
    return ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: index for index, name in enumerate(names)},
        sampled_token_ids=[[7] if name in whole else [] for name in names],
        routed_experts=RoutedExpertsLists(rows.astype(np.int32), np.arange(tokens)),
    )


def _seen(output):
    rows = output.routed_experts
    return {
        "request": output.request_id,
        "tokens": list(output.new_token_ids),
        "finished": str(output.finish_reason),
        "rows": None if rows is None else (rows.shape, rows.dtype.name, rows.tobytes()),
    }
