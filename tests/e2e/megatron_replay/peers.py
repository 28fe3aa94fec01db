"""Situations in which other implementations of router replay went wrong."""

import bench
import numpy as np
import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_mtp_block_spec
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.moe.router_replay import RouterReplay as NativeReplay

from routereplay.patches.megatron import enable_router_replay


def decoder_built_twice():
    """A bridge that builds its decoder again leaves routers that never run."""
    NativeReplay.clear_global_router_replay_instances()
    model = bench.build(moe_enable_routing_replay=True)
    orphans = bench.routers(model)
    model.decoder = bench.build(moe_enable_routing_replay=True).decoder
    replay = enable_router_replay(model)
    packed = bench.random_routes(1)
    watch = bench.MapWatch(model)
    bench.replay_train(model, replay, packed)
    in_the_native_list = len(NativeReplay.global_router_replay_instances)
    NativeReplay.clear_global_router_replay_instances()
    return {
        "layers": replay.layer_numbers,
        "equal": watch.rows_equal(packed),
        "in_the_native_list": in_the_native_list,
        "orphans_untouched": all(isinstance(r.router_replay, NativeReplay) for r in orphans),
    }


def multi_token_prediction():
    """Its MoE layer is trained beside the decoder; from 0.17 on both say layer number 1."""
    # 0.18 cannot checkpoint the whole layer of multi-token prediction.
    model = bench.build("moe", mtp_hook=_mtp_spec, mtp_num_layers=1, moe_layer_freq=1)
    experts = bench.random_routes(1).experts
    experts[:, 0] = experts[:, 1, ::-1]
    routes = bench.pack(experts)
    replay = enable_router_replay(model)
    outside = [module for module in model.mtp.modules() if isinstance(module, TopKRouter)]
    calls = []
    for router in outside:
        router.register_forward_hook(lambda _m, _i, _o: calls.append(1))
    watch = bench.MapWatch(model)
    _, grads = bench.replay_train(model, replay, routes)
    return {
        "layers": replay.layer_numbers,
        "equal": watch.rows_equal(routes),
        "outside": [router.router_replay is None for router in outside],
        "outside_called": len(calls),
        "outside_trained": [
            grads[name].abs().sum().item() > 0
            for name in grads
            if name.startswith("mtp") and name.endswith("router.weight")
        ],
    }


def _mtp_spec(config, spec):
    return get_gpt_mtp_block_spec(config, spec, use_transformer_engine=False)


def router_that_moves_before_its_recompute(replayed):
    """What a near-tie does by itself: a second forward would choose otherwise."""
    model = bench.build("full")
    live = np.ones(bench.ROWS, bool)
    packed = bench.pack(bench.random_routes(1).experts, live=live)
    replay = enable_router_replay(model)
    watch = bench.MapWatch(model)

    def run():
        loss = bench.forward(model)
        bench.perturb_routers(model)
        loss.backward()

    if replayed:
        with replay.step():
            replay.begin_microbatch(packed, bench.row_ids())
            run()
    else:
        with replay.bypass():
            run()
    return {"recompute_repeats": all(torch.equal(*maps) for maps in watch.maps.values())}


def compiled_router():
    """A router under torch.compile replays each microbatch without compiling again."""
    model = bench.build()
    replay = enable_router_replay(model)
    for router in bench.routers(model):
        router.compile(backend="eager")
    equal = []
    torch._dynamo.reset()
    for seed in range(4):
        packed = bench.random_routes(seed)
        watch = bench.MapWatch(model)
        with torch._dynamo.config.patch(error_on_recompile=seed > 0):
            bench.replay_train(model, replay, packed, seed)
        equal.append(watch.rows_equal(packed))
        watch.close()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return {"equal": equal, "graphs": graphs}


def weights_of_experts_far_from_the_top():
    """Their scores come from all logits: none is zero, and each carries a gradient."""
    model = bench.build()
    packed = bench.random_routes(1)
    weights = []

    def keep(_router, _inputs, outputs):
        probs, routing_map = outputs
        weights.append(probs[routing_map])

    for router in bench.routers(model):
        router.register_forward_hook(keep)
    bench.replay_train(model, enable_router_replay(model), packed)
    return {
        "smallest": min(weight.min().item() for weight in weights),
        "count": [len(weight) for weight in weights],
    }


class _Adapter(torch.nn.Module):
    """A low-rank path beside a linear of an expert; the linear itself is frozen."""

    def __init__(self, linear, rank=2):
        super().__init__()
        self.linear = linear
        out_features, in_features = linear.weight.shape
        generator = torch.Generator().manual_seed(out_features)
        self.down = torch.nn.Parameter(torch.randn(rank, in_features, generator=generator) * 0.1)
        self.up = torch.nn.Parameter(torch.randn(out_features, rank, generator=generator) * 0.1)

    def forward(self, hidden):
        output, bias = self.linear(hidden)
        return output + hidden @ self.down.t() @ self.up.t(), bias


def adapters_on_experts():
    """Train adapters on recorded routes live, replayed, and live again."""
    model = bench.build("full").requires_grad_(False)
    for module in list(model.modules()):
        if hasattr(module, "linear_fc1") and hasattr(module, "linear_fc2"):
            module.linear_fc1 = _Adapter(module.linear_fc1)
            module.linear_fc2 = _Adapter(module.linear_fc2)
    # A checkpoint needs an input that asks for gradients, as adapters' trainers know.
    model.embedding.word_embeddings.weight.requires_grad_(True)
    before = _parameters(model)
    live_loss, live_grads, packed = bench.record(model)
    replay = enable_router_replay(model)
    enabled = _parameters(model)
    loss, grads = bench.replay_train(model, replay, packed)
    replay.disable()
    _, again = bench.train(model)
    return {
        "adapters": sum("linear_fc1.down" in name for name in grads),
        "frozen_trained": [n for n in grads if n.endswith("linear.weight")],
        "parameters_unchanged": before == enabled == _parameters(model),
        "loss_equal": loss == live_loss,
        "gradient_difference": bench.gradient_difference(grads, live_grads),
        "difference_after_disable": bench.gradient_difference(again, live_grads),
        "all_adapters_trained": all(
            grads[name].abs().sum() > 0 for name in grads if name.endswith((".up", ".down"))
        ),
    }


def _parameters(model):
    return [(name, id(p), p.requires_grad, p._version) for name, p in model.named_parameters()]
