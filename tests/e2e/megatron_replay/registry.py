"""A Megatron model held to the model that was sampled, and hybrid models placed by it."""

import bench
import hybrid
import torch

from routereplay.patches.megatron import ReplayUnsupported, enable_router_replay, routed_model

SAMPLED = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": bench.LAYERS,
    "first_k_dense_replace": 1,
    "n_routed_experts": bench.EXPERTS,
    "num_experts_per_tok": bench.TOPK,
    "norm_topk_prob": True,
    "scoring_func": "softmax",
    "routed_scaling_factor": 1.0,
}
"""The Hugging Face side of `bench.build()`."""

SAMPLED_AS_HYBRID = {
    "model_type": "qwen3_next",
    "num_hidden_layers": 4,
    "mlp_only_layers": [1],
    "num_experts": bench.EXPERTS,
    "num_experts_per_tok": bench.TOPK,
    "norm_topk_prob": True,
}
"""The Hugging Face side of `hybrid.build()`."""


def agreement(changes, overrides):
    """Enable with a config that has `changes` on a model with `overrides`; return the reasons."""
    model = bench.build(**overrides)
    return _reasons_of(model, routed_model(SAMPLED | changes))


def hybrid_reasons(changes):
    """None as `changes` enables without a model."""
    sampled = None if changes is None else routed_model(SAMPLED_AS_HYBRID | changes)
    return _reasons_of(hybrid.build(), sampled)


def hybrid_replays():
    """Which plane of the routes each router executes, and whether it is all of it."""
    model = hybrid.build()
    replay = enable_router_replay(model, model=routed_model(SAMPLED_AS_HYBRID))
    packed = bench.random_routes(1)
    packed.experts[:, 0] = bench.random_routes(2).experts[:, 1]
    packed.experts[:, 1] = 0  # The dense one.
    maps = {}
    for router in bench.routers(model):
        router.register_forward_hook(
            lambda router, _inputs, outputs: maps.update({router.layer_number: outputs[1]})
        )
    with replay.step(), torch.no_grad():
        replay.begin_microbatch(packed, bench.row_ids())
        bench.output(model, seed=5)
    return {number: _planes_equal(routing, packed) for number, routing in maps.items()}


def _planes_equal(routing_map, packed):
    by_sequence = bench.MapWatch._by_sequence(routing_map)
    return [
        layer_idx
        for layer_idx in range(4)
        if torch.equal(by_sequence, bench.MapWatch._expected(packed, layer_idx))
    ]


def _reasons_of(model, sampled):
    try:
        replay = enable_router_replay(model, model=sampled)
    except ReplayUnsupported as error:
        untouched = all(router.router_replay is None for router in bench.routers(model))
        return {"reasons": list(error.reasons), "untouched": untouched}
    return {"reasons": [], "layers": list(replay.layer_numbers)}
