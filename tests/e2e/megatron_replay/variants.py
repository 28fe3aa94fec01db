"""Models and recomputes of other kinds, and what a router call costs in top-k."""

import contextlib
import sys
from pathlib import Path

import bench
import numpy as np
import torch

from routereplay.patches.megatron import enable_router_replay
from routereplay.patches.megatron.layer import MegatronLayer


def recomputed_modules(modules):
    """Replay a model's own routes with `modules` recomputed; it has a shared expert too."""
    recompute = {"recompute_granularity": "selective", "recompute_modules": modules}
    model = bench.build(moe_shared_expert_intermediate_size=16, **(recompute if modules else {}))
    live_loss, live_grads, packed = bench.record(model)
    replay = enable_router_replay(model)
    loss, grads = bench.replay_train(model, replay, packed)
    return {
        "loss_equal": loss == live_loss,
        "gradient_difference": bench.gradient_difference(grads, live_grads),
        "shared_trained": sum(
            grads[name].abs().sum().item() > 0 for name in grads if "shared_experts" in name
        ),
        "router_calls": replay.last_step.router_calls,
        "recomputes": replay.last_step.recomputes,
    }


@contextlib.contextmanager
def _counted_topk():
    """Count calls of `torch.topk`, in recompute too, where no function mode is open."""
    calls, original = [], torch.topk

    def counted(*args, **fields):
        calls.append(1)
        return original(*args, **fields)

    torch.topk = counted
    try:
        yield calls
    finally:
        torch.topk = original


def topk_of_a_microbatch():
    """How often a top-k runs in three routers' forward and recompute, by the rows of a batch."""
    model = bench.build("full")
    experts = bench.random_routes(1).experts
    one_live = np.arange(bench.ROWS) == 5
    found = {}
    with _counted_topk() as calls:
        bench.train(model)
        found["live"] = len(calls)
        for name, every, live in (
            ("replayed", 0, None),
            ("one row live", 0, one_live),
            ("compared", 1, None),
        ):
            replay = enable_router_replay(model, canary_every=every)
            calls.clear()
            bench.replay_train(model, replay, bench.pack(experts, live=live))
            found[name] = len(calls)
            replay.disable()
    return found


def operations_of_router_calls():
    """How many operations each call of a router launches in a step, by what the step is."""
    sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
    from router_call import Operations

    counts, original = [], MegatronLayer.get_replay_topk

    def counted(*args, **fields):
        with Operations() as operations:
            answer = original(*args, **fields)
        counts.append(operations.count)
        return answer

    model = bench.build("full")
    packed, found = bench.random_routes(1), {}
    MegatronLayer.get_replay_topk = counted
    try:
        for name, every in (("replayed", 0), ("compared", 1)):
            replay = enable_router_replay(model, canary_every=every, canary_layer=2)
            for _ in range(2):  # The second time, rows were dealt before.
                counts.clear()
                bench.replay_train(model, replay, packed)
            found[name] = list(counts)
            replay.disable()
    finally:
        MegatronLayer.get_replay_topk = original
    return found
