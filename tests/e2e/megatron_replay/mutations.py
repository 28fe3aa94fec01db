"""Routes and replays that are wrong in the ways of real trainers.

`SILENT` maps right routes to wrong ones that are valid in every shape and id: nothing but
a comparison with live routing can tell them, so a canary must. `pair_for_canary` gives
what such a test needs: a model, the routes of its own choice, and the same mutated.
"""

import contextlib

import batches
import bench
import numpy as np

from routereplay.client import pack_thd
from routereplay.patches.megatron import enable_router_replay
from routereplay.patches.replay.layer import LayerReplay
from routereplay.wire.errors import RouteReplayError


def _rows_of_the_token_before(experts):
    return np.roll(experts, 1, axis=0)


def _rows_of_the_token_after(experts):
    return np.roll(experts, -1, axis=0)


def _two_layers_swapped(experts):
    return experts[:, [0, 2, 1, 3]]


def _trajectories_swapped(experts):
    return np.roll(experts, bench.LENGTH, axis=0)


def _position_major(experts):
    by_sequence = experts.reshape(bench.BATCH, bench.LENGTH, *experts.shape[1:])
    return by_sequence.swapaxes(0, 1).reshape(experts.shape)


def _routes_of_another_microbatch(experts):
    return bench.random_routes(77).experts


SILENT = {
    "rows_of_the_token_before": _rows_of_the_token_before,
    "rows_of_the_token_after": _rows_of_the_token_after,
    "two_layers_swapped": _two_layers_swapped,
    "trajectories_swapped": _trajectories_swapped,
    "position_major": _position_major,
    "routes_of_another_microbatch": _routes_of_another_microbatch,
}


def pair_for_canary(mutation):
    """Return a model, the routes that it chooses itself, and those after `mutation`."""
    model = bench.build("full")
    _, _, right = bench.record(model)
    return model, right, _changed(right, SILENT[mutation])


def effect_of(mutation):
    """Return how far losses and gradients are from the run that the routes were taken from."""
    model = bench.build("full")
    right_loss, right_grads, right = bench.record(model)
    loss, grads = bench.replay_train(
        model, enable_router_replay(model), _changed(right, SILENT[mutation])
    )
    return {
        "loss_difference": abs(loss - right_loss) / right_loss,
        "gradient_difference": bench.relative_difference(grads, right_grads),
    }


def recompute_in_another_order():
    """Two microbatches in flight, the later one's ids recomputed first."""
    right = _two_in_flight()
    with _last_in_first_out():
        wrong = _two_in_flight()
    return {
        "losses_equal": wrong[0] == right[0],
        "gradient_difference": bench.relative_difference(wrong[1], right[1]),
    }


def error_of(mutation):
    """Return class and message of the error that a mutation of `LOUD` ends in, or None."""
    try:
        LOUD[mutation]()
    except RouteReplayError as error:
        return {"type": type(error).__name__, "message": str(error)}
    return None


def _last_row_of_the_batch_missing():
    experts = bench.random_routes(1).experts
    _replay(bench.pack(experts[:-1]))


def _last_row_of_a_request_missing():
    _pack_requests([9, 9], rows=[8, 7])


def _trajectories_swapped_before_packing():
    tokens = np.arange(18, dtype=np.int32)
    requests = [_request(tokens[9:]), _request(tokens[:9])]
    pack_thd(requests, tokens, cu_seqlens=[0, 9, 18])


def _one_expert_twice():
    experts = bench.random_routes(1).experts
    experts[7, 2, 1] = experts[7, 2, 0]
    _replay(bench.pack(experts))


def _padding_of_zeros():
    experts = bench.random_routes(1).experts
    padding = np.arange(bench.ROWS) >= bench.ROWS - 4
    experts[padding] = 0
    _replay(bench.pack(experts, padding=padding))


def _padding_past_the_experts():
    experts = bench.random_routes(1).experts
    padding = np.arange(bench.ROWS) >= bench.ROWS - 4
    experts[padding] = 255
    _replay(bench.pack(experts, padding=padding))


LOUD = {
    "last_row_of_the_batch_missing": _last_row_of_the_batch_missing,
    "last_row_of_a_request_missing": _last_row_of_a_request_missing,
    "trajectories_swapped_before_packing": _trajectories_swapped_before_packing,
    "one_expert_twice": _one_expert_twice,
    "padding_of_zeros": _padding_of_zeros,
    "padding_past_the_experts": _padding_past_the_experts,
}


def _changed(packed, mutation):
    return bench.pack(np.ascontiguousarray(mutation(packed.experts)))


def _replay(packed):
    model = bench.build()
    bench.replay_train(model, enable_router_replay(model), packed)


def _request(tokens, rows=None):
    rows = len(tokens) - 1 if rows is None else rows
    return batches.recorded_request(tokens, bench.random_routes(1).experts[:rows])


def _pack_requests(lengths, rows):
    tokens = np.arange(sum(lengths), dtype=np.int32)
    bounds = np.cumsum([0, *lengths])
    requests = [
        _request(part, count)
        for part, count in zip(np.split(tokens, bounds[1:-1]), rows, strict=True)
    ]
    pack_thd(requests, tokens, cu_seqlens=bounds)


def _two_in_flight():
    model = bench.build("full")
    replay = enable_router_replay(model)
    losses = []
    with replay.step():
        for seed in range(2):
            replay.begin_microbatch(bench.random_routes(seed), bench.row_ids())
            losses.append(bench.forward(model, seed))
        for loss in losses:
            loss.backward()
    return [loss.item() for loss in losses], bench.gradients(model)


@contextlib.contextmanager
def _last_in_first_out():
    original = LayerReplay._recompute

    def reversed_order(self):
        self._pending.rotate(1)
        return original(self)

    LayerReplay._recompute = reversed_order
    try:
        yield
    finally:
        LayerReplay._recompute = original
