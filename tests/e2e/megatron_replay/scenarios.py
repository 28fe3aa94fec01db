"""What the tests ask of the real Megatron-Core. Each returns facts; the tests judge them."""

import contextlib
import dataclasses

import bench
import numpy as np
import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from routereplay.patches.megatron import enable_router_replay
from routereplay.patches.megatron.placement import RouterRows
from routereplay.patches.replay.layer import LayerReplay


def replay_of_own_routes(recompute):
    model = bench.build(recompute)
    live_loss, live_grads, packed = bench.record(model)
    replay = enable_router_replay(model)
    loss, grads = bench.replay_train(model, replay, packed)
    return {
        "loss_equal": loss == live_loss,
        "gradient_difference": bench.gradient_difference(grads, live_grads),
        "parameters": len(grads),
        "router_gradients": [
            grads[name].abs().sum().item() for name in grads if name.endswith("router.weight")
        ],
        "report": dataclasses.asdict(replay.last_step),
    }


def replay_of_foreign_routes(recompute):
    """Routers that would choose otherwise execute what they are handed."""
    model = bench.build(recompute)
    packed = bench.random_routes(1)
    watch = bench.MapWatch(model)
    bench.train(model)
    live_equal = watch.rows_equal(packed)
    watch.close()
    replay = enable_router_replay(model)
    watch = bench.MapWatch(model)
    _, grads = bench.replay_train(model, replay, packed)
    return {
        "live_equal": live_equal,
        "replay_equal": watch.rows_equal(packed),
        "calls": watch.calls(),
        "router_gradients": [
            grads[name].abs().sum().item() for name in grads if name.endswith("router.weight")
        ],
    }


def replay_of_sorted_routes():
    """The routes that a codec without order leaves: rising ids, other weights first."""
    model = bench.build("full")
    live_loss, live_grads, packed = bench.record(model)
    rising = dataclasses.replace(packed, experts=np.sort(packed.experts, axis=2), in_order=False)
    loss, grads = bench.replay_train(model, enable_router_replay(model), rising)
    return {
        "rows_moved": int((rising.experts != packed.experts).any(axis=(1, 2)).sum()),
        "loss_difference": abs(loss - live_loss),
        "gradient_difference": bench.relative_difference(grads, live_grads),
    }


def mixed_replay(recompute):
    """Half of the rows live, with an id out of range in their place."""
    model = bench.build(recompute)
    live_loss, live_grads, packed = bench.record(model)
    live = np.arange(bench.ROWS) % 2 == 1
    experts = packed.experts.copy()
    experts[live] = 255
    replay = enable_router_replay(model)
    loss, grads = bench.replay_train(model, replay, bench.pack(experts, live=live))
    return {
        "loss_equal": loss == live_loss,
        "gradient_difference": bench.gradient_difference(grads, live_grads),
    }


def mixed_replay_of_foreign_routes():
    model = bench.build("full")
    packed = bench.random_routes(1)
    live = np.arange(bench.ROWS) % 2 == 1
    replay = enable_router_replay(model)
    watch = bench.MapWatch(model)
    bench.replay_train(model, replay, bench.pack(packed.experts, live=live))
    first = {layer_idx: maps[0] for layer_idx, maps in watch.maps.items()}
    return {
        "recorded_rows_equal": watch.rows_equal(packed, ~live),
        "live_rows_equal": watch.rows_equal(packed, live),
        "recompute_repeats": all(
            torch.equal(maps[1], first[layer_idx]) for layer_idx, maps in watch.maps.items()
        ),
    }


def padding_rows():
    model = bench.build()
    packed = bench.random_routes(1)
    padding = np.arange(bench.ROWS) >= bench.ROWS - 5
    replay = enable_router_replay(model)
    watch = bench.MapWatch(model)
    bench.replay_train(model, replay, bench.pack(packed.experts, padding=padding))
    return {"padding_equal": watch.rows_equal(packed, padding)}


def two_in_flight(mutate):
    """Both forwards before both backwards, as pipeline warm-up does."""
    routes = [bench.random_routes(1), bench.random_routes(2)]

    def run(recompute):
        model = bench.build(recompute)
        replay = enable_router_replay(model)
        losses = []
        with replay.step():
            for seed, packed in enumerate(routes):
                replay.begin_microbatch(packed, bench.row_ids())
                losses.append(bench.forward(model, seed))
            for loss in losses:
                loss.backward()
        return [loss.item() for loss in losses], bench.gradients(model)

    right_losses, right_grads = run(None)
    with _stale_recompute() if mutate else contextlib.nullcontext():
        losses, grads = run("full")
    return {
        "losses_equal": losses == right_losses,
        "gradient_difference": bench.relative_difference(grads, right_grads),
    }


def schedule_of_microbatches(recompute):
    """Megatron's own schedule over three microbatches against one at a time."""
    routes = [bench.random_routes(seed) for seed in range(3)]
    model = bench.build(recompute)
    replay = enable_router_replay(model)
    alone = [bench.replay_train(model, replay, packed, seed) for seed, packed in enumerate(routes)]
    losses = []

    def forward_step(seeds, chunk):
        seed = next(seeds)
        replay.begin_microbatch(routes[seed], bench.row_ids())
        loss = bench.forward(chunk, seed)

        def loss_func(output):
            losses.append(output.item())
            return output, {}

        return loss, loss_func

    with replay.step():
        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(range(3)),
            model=model,
            num_microbatches=3,
            seq_length=bench.LENGTH,
            micro_batch_size=bench.BATCH,
            forward_only=False,
        )
    grads = bench.gradients(model)
    summed = {name: sum(g[name] for _, g in alone) / 3 for name in grads}
    return {
        "losses_equal": losses == [loss for loss, _ in alone],
        "gradient_difference": bench.relative_difference(grads, summed),
        "report": dataclasses.asdict(replay.last_step),
    }


def rows_in_another_order():
    """A router order that forgets the transpose must not train the same."""
    from routereplay.patches.megatron import host

    packed = bench.random_routes(1)
    right = replay_fresh(packed)
    original = host.router_rows
    host.router_rows = lambda ids, **_: RouterRows(ids.reshape(-1), tuple(ids.t().shape))
    try:
        wrong = replay_fresh(packed)
    finally:
        host.router_rows = original
    return {
        "losses_differ": wrong[0] != right[0],
        "gradient_difference": bench.relative_difference(wrong[1], right[1]),
    }


def wide_expert_ids():
    """More than 256 experts: uint16 routes, int16 on the device."""
    model = bench.build(num_moe_experts=300)
    generator = np.random.default_rng(0)
    experts = generator.random((bench.ROWS, bench.LAYERS, 300)).argsort(-1)[..., : bench.TOPK]
    experts = experts.astype(np.uint16)
    experts[:, 0] = 0
    replay = enable_router_replay(model)
    watch = bench.MapWatch(model)
    bench.replay_train(model, replay, bench.pack(experts, num_experts=300))
    (routing_map,) = watch.maps[2]
    by_sequence = watch._by_sequence(routing_map)
    executed = by_sequence.nonzero()[:, 1].view(bench.ROWS, bench.TOPK)
    return {"equal": bool((executed.numpy() == np.sort(experts[:, 2], axis=-1)).all())}


def slice_of_layers():
    """Routes that begin at a later layer, as a pipeline stage fetches them."""
    packed = bench.random_routes(1)
    right = replay_fresh(packed)
    part = bench.pack(np.ascontiguousarray(packed.experts[:, 1:]), layer_start=1)
    loss, grads = replay_fresh(part)
    return {
        "loss_equal": loss == right[0],
        "gradient_difference": bench.gradient_difference(grads, right[1]),
    }


def mapped_layers():
    """A layer map that reverses the layers equals routes that are reversed."""
    packed = bench.random_routes(1)
    reversed_routes = bench.pack(np.ascontiguousarray(packed.experts[:, ::-1]))
    right = replay_fresh(packed)
    loss, grads = replay_fresh(reversed_routes, layer_map={2: 2, 3: 1, 4: 0})
    return {
        "loss_equal": loss == right[0],
        "gradient_difference": bench.gradient_difference(grads, right[1]),
    }


def replay_fresh(packed, **arguments):
    model = bench.build()
    return bench.replay_train(model, enable_router_replay(model, **arguments), packed)


@contextlib.contextmanager
def _stale_recompute():
    """The bug of a trainer that replays the open microbatch at recompute, whichever it is."""
    original = LayerReplay._recompute

    def stale(self):
        original(self)
        return self._chunk.current.ids_LTK[self._slot].long()

    LayerReplay._recompute = stale
    try:
        yield
    finally:
        LayerReplay._recompute = original


def replays_with(config):
    """Other score functions and groupings replay too."""
    model = bench.build("full", **config)
    packed = bench.random_routes(1)
    replay = enable_router_replay(model)
    watch = bench.MapWatch(model)
    _, grads = bench.replay_train(model, replay, packed)
    return {
        "equal": watch.rows_equal(packed),
        "router_gradients": [
            grads[name].abs().sum().item() for name in grads if name.endswith("router.weight")
        ],
    }
