"""Things that a trainer gets wrong. Each function must end in an error of the package."""

import bench
import numpy as np
import torch
from megatron.core.transformer.moe.router import TopKRouter

from routereplay.patches.megatron import enable_router_replay


def _enabled(recompute=None, **overrides):
    model = bench.build(recompute, **overrides)
    return model, enable_router_replay(model)


def forward_outside_of_step():
    model, _ = _enabled()
    bench.forward(model)


def forward_without_microbatch():
    model, replay = _enabled()
    with replay.step():
        bench.forward(model)


def second_forward_of_one_microbatch():
    model, replay = _enabled()
    with replay.step():
        replay.begin_microbatch(bench.random_routes(1), bench.row_ids())
        bench.forward(model)
        bench.forward(model)


def microbatch_that_is_not_executed():
    _, replay = _enabled()
    with replay.step():
        replay.begin_microbatch(bench.random_routes(1), bench.row_ids())
        replay.begin_microbatch(bench.random_routes(1), bench.row_ids())


def step_that_ends_before_the_forward():
    _, replay = _enabled()
    with replay.step():
        replay.begin_microbatch(bench.random_routes(1), bench.row_ids())


def step_without_microbatches():
    _, replay = _enabled()
    with replay.step():
        pass


def step_without_backward():
    model, replay = _enabled("full")
    with replay.step():
        replay.begin_microbatch(bench.random_routes(1), bench.row_ids())
        bench.forward(model)


def step_inside_step():
    _, replay = _enabled()
    with replay.step(), replay.step():
        pass


def microbatch_outside_of_step():
    _, replay = _enabled()
    replay.begin_microbatch(bench.random_routes(1), bench.row_ids())


def too_few_rows():
    model, replay = _enabled()
    with replay.step():
        replay.begin_microbatch(bench.random_routes(1), bench.row_ids()[:, :-1])
        bench.forward(model)


def same_rows_in_another_shape():
    model, replay = _enabled()
    with replay.step():
        replay.begin_microbatch(bench.random_routes(1), bench.row_ids().view(1, -1))
        bench.forward(model)


def row_ids_of_another_batch():
    _, replay = _enabled()
    with replay.step():
        replay.begin_microbatch(bench.random_routes(1), bench.row_ids() + 1)


def row_ids_that_are_floats():
    _, replay = _enabled()
    with replay.step():
        replay.begin_microbatch(bench.random_routes(1), bench.row_ids().float())


def another_number_of_experts():
    _, replay = _enabled()
    routes = bench.pack(bench.random_routes(1).experts, num_experts=2 * bench.EXPERTS)
    with replay.step():
        replay.begin_microbatch(routes, bench.row_ids())


def another_topk():
    _, replay = _enabled()
    routes = bench.pack(bench.random_routes(1).experts[..., :1])
    with replay.step():
        replay.begin_microbatch(routes, bench.row_ids())


def layers_that_are_absent():
    _, replay = _enabled()
    routes = bench.pack(bench.random_routes(1).experts[:, :-1])
    with replay.step():
        replay.begin_microbatch(routes, bench.row_ids())


def dense_plane_for_a_moe_layer():
    _, replay = _enabled()
    experts = bench.random_routes(1).experts.copy()
    experts[:, 2] = 0
    with replay.step():
        replay.begin_microbatch(bench.pack(experts), bench.row_ids())


def expert_twice_in_a_row():
    _, replay = _enabled()
    experts = bench.random_routes(1).experts.copy()
    experts[3, 2] = 5
    with replay.step():
        replay.begin_microbatch(bench.pack(experts), bench.row_ids())


def expert_out_of_range():
    _, replay = _enabled()
    experts = bench.random_routes(1).experts.copy()
    experts[3, 2, 0] = bench.EXPERTS
    with replay.step():
        replay.begin_microbatch(bench.pack(experts), bench.row_ids())


def backward_of_the_step_in_bypass():
    model, replay = _enabled("full")
    with replay.step():
        replay.begin_microbatch(bench.random_routes(1), bench.row_ids())
        loss = bench.forward(model)
        with replay.bypass():
            loss.backward()


def backward_of_bypass_after_it():
    model, replay = _enabled("full")
    with replay.bypass():
        loss = bench.forward(model)
    loss.backward()


def step_after_disable():
    _, replay = _enabled()
    replay.disable()
    with replay.step():
        pass


def disable_inside_step():
    _, replay = _enabled()
    with replay.step():
        replay.disable()


def enabled_twice():
    model, _ = _enabled()
    enable_router_replay(model)


def model_without_decoder():
    enable_router_replay(torch.nn.Linear(2, 2))


def decoder_without_layers():
    """Only a pipeline has stages without layers."""
    model = bench.build()
    model.decoder.layers = torch.nn.ModuleList()
    enable_router_replay(model)


def dense_model():
    model = bench.build(num_moe_experts=None, moe_layer_freq=1, moe_ffn_hidden_size=None)
    enable_router_replay(model)


def same_chunk_twice():
    model = bench.build()
    enable_router_replay([model, model])


def layer_map_with_a_hole():
    enable_router_replay(bench.build(), layer_map={2: 1, 3: 2})


def router_of_another_class():
    """A MoE layer whose router is no TopKRouter, as a custom spec can build it."""
    model = bench.build()
    model.decoder.layers[2].mlp.router = torch.nn.Identity()
    enable_router_replay(model)


def router_that_does_not_ask():
    class Deaf(TopKRouter):
        def routing(self, logits, padding_mask=None):
            saved, self.router_replay = self.router_replay, None
            try:
                return super().routing(logits, padding_mask)
            finally:
                self.router_replay = saved

    model = bench.build()
    bench.routers(model)[0].__class__ = Deaf
    enable_router_replay(model)


def two_decoders():
    """A multimodal model whose language model was built again, and both are there."""
    model = bench.build()
    model.language_model = bench.build()
    enable_router_replay(model)


def weights_without_gradient():
    """A release or fork that detaches the weights of replayed experts."""
    from routereplay.patches.megatron import probe

    original = probe.topk_routing_with_score_function

    def detached(*args, **fields):
        probs, routing_map = original(*args, **fields)
        return probs.detach(), routing_map

    probe.topk_routing_with_score_function = detached
    try:
        enable_router_replay(bench.build())
    finally:
        probe.topk_routing_with_score_function = original


def everything_at_once():
    model = bench.build()
    model.config.moe_router_fusion = True
    model.config.moe_expert_capacity_factor = 1.0
    model.config.moe_router_force_load_balancing = True
    model.config.mlp_chunks_for_training = 2
    enable_router_replay([model, model])


def vp_stage_that_is_no_chunk():
    _, replay = _enabled()
    with replay.step():
        replay.begin_microbatch(bench.random_routes(1), bench.row_ids(), vp_stage=1)


def all_rows_one_expert_plane_of_zeros_with_live_rows():
    _, replay = _enabled()
    experts = np.zeros_like(bench.random_routes(1).experts)
    live = np.arange(bench.ROWS) < bench.ROWS - 1
    with replay.step():
        replay.begin_microbatch(bench.pack(experts, live=live), bench.row_ids())
