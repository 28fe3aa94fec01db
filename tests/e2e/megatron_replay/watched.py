"""Steps of a real model as numbers: rows, overlap, age, ratios; and its own routes recorded."""

import bench
import numpy as np
import torch
from batches import recorded_request

from routereplay.client import ModelShape, pack_padded, unrouted
from routereplay.patches.megatron import ReplayWatch, enable_router_replay
from routereplay.wire.errors import RouteReplayError
from routereplay.wire.records import PolicySpan

SHAPE = ModelShape(bench.LAYERS, bench.TOPK, bench.EXPERTS)
LOST = 3
"""Rows that the engine lost, of the first of two requests."""


def _rollout(seed):
    """Two requests of `bench.output(seed)`'s tokens with the routes that the model chooses.

    The first was sampled while the policy went from 7 to 9, and lost its last rows.
    """
    model = bench.build("full")
    _, _, own = bench.record(model, seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (2, bench.BATCH, bench.LENGTH)
    tokens, _ = torch.randint(0, bench.VOCAB, shape, generator=generator).numpy()
    policies = [
        (PolicySpan("7", 0, 5), PolicySpan("9", 5, bench.LENGTH)),
        (PolicySpan("9", 0, bench.LENGTH),),
    ]
    requests = []
    for index, rows in enumerate((bench.LENGTH - 1 - LOST, bench.LENGTH - 1)):
        first = index * bench.LENGTH
        requests.append(
            recorded_request(
                tokens[index].astype(np.int32),
                own.experts[first : first + rows],
                f"chatcmpl-{index}",
                policies[index],
            )
        )
    lengths = [bench.LENGTH] * bench.BATCH
    return model, pack_padded(requests, tokens, lengths=lengths, model=SHAPE, missing="live")


def numbers_of_steps():
    """Two steps on one rollout; log-probs of the second differ from the first's by its update."""
    model, packed = _rollout(5)
    replay = enable_router_replay(model)
    seen = []
    watch = ReplayWatch([lambda numbers, step: seen.append((step, numbers))])
    mask = torch.ones(bench.BATCH, bench.LENGTH, dtype=torch.bool)
    mask[:, :4] = False  # The prompt.
    sampled, ratios = None, []
    for iteration in (10, 11):
        with replay.step():
            replay.begin_microbatch(packed, bench.row_ids())
            trained = -bench.output(model, 5)
            (-trained).mean().backward()
            sampled = trained.detach() if sampled is None else sampled
            watch.logprobs(trained, sampled, mask)
        ratios.append((trained.detach() - sampled)[mask].double())
        watch.finish(replay.last_step, step=iteration, policy_version=iteration)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.5)
        model.zero_grad()
    last = ratios[-1]
    expected = {
        "logprob_error": last.abs().mean().item(),
        "logprob_kl": (last.exp() - 1 - last).mean().item(),
        "ratio_min": last.exp().min().item(),
        "ratio_max": last.exp().max().item(),
        "ratio_p50": last.exp().quantile(0.5, interpolation="lower").item(),
    }
    return {"seen": seen, "expected": expected, "same": seen[-1][1] == watch.numbers}


def own_routes(recompute, drift):
    """R2: a pass for log-probs is recorded, the update replays it, whatever the router does."""
    model = bench.build(recompute)
    replay = enable_router_replay(model)
    live_loss, live_grads, right = bench.record(bench.build(recompute))
    with replay.step(record=True), torch.no_grad():
        replay.begin_microbatch(unrouted(bench.ROWS, SHAPE), bench.row_ids())
        scored = bench.forward(model).item()
    recording, report = replay.last_recording, replay.last_step
    recorded = recording.packed(0)
    if drift:
        bench.perturb_routers(model)
    watch = bench.MapWatch(model)
    loss, grads = bench.replay_train(model, replay, recorded)
    return {
        "recorded": [len(recording), recorded.layer_start, list(recorded.experts.shape)],
        "recorded_equal": bool((recorded.experts == right.experts[:, 1:]).all()),
        "rows_of_recording": list(report.rows),
        "rows_of_update": list(replay.last_step.rows),
        "executed_equal": watch.rows_equal(right),
        "overlap_of_recording": [reading.overlap for reading in report.canary],
        "overlap_of_update": [reading.overlap for reading in replay.last_step.canary],
        "losses_equal": scored == loss == live_loss,
        "gradient_difference": bench.gradient_difference(grads, live_grads),
    }


def mixed_recording():
    """Rows that were live in the first epoch are replayed in the second, as the others are."""
    model = bench.build("full")
    live = np.arange(bench.ROWS) % 2 == 1
    routes = bench.pack(bench.random_routes(1).experts, live=live)
    replay = enable_router_replay(model)
    with replay.step(record=True):
        replay.begin_microbatch(routes, bench.row_ids())
        first = bench.train(model)
    recorded = replay.last_recording.packed(0)
    bench.perturb_routers(model)
    watch = bench.MapWatch(model)
    bench.replay_train(model, replay, recorded)
    moved = watch.rows_equal(routes, live)
    watch.close()
    model = bench.build("full")
    second = bench.replay_train(model, enable_router_replay(model), recorded)
    return {
        "given_rows_kept": bool((recorded.experts[~live] == routes.experts[~live, 1:]).all()),
        "live_rows_are_others": not moved,
        "losses_equal": first[0] == second[0],
        "gradient_difference": bench.gradient_difference(first[1], second[1]),
    }


def recordings_that_cannot_be_replayed():
    """Rows of another rank, microbatches that were not there, more than 256 experts."""
    model = bench.build()
    replay = enable_router_replay(model)
    with replay.step(record=True), torch.no_grad():
        replay.begin_microbatch(unrouted(2 * bench.ROWS, SHAPE), bench.row_ids())
        bench.forward(model)
    recorded = replay.last_recording.packed(0)
    found = {"dtype": str(recorded.experts.dtype)}
    try:
        with replay.step():
            replay.begin_microbatch(recorded, bench.row_ids() + bench.ROWS)
    except RouteReplayError as error:
        found["other_rows"] = error.code
    try:
        replay.last_recording.packed(1)
    except IndexError:
        found["other_microbatch"] = "refused"
    before = replay.last_recording
    try:
        with replay.step(record=True):
            raise ZeroDivisionError
    except ZeroDivisionError:
        found["failed_step_is_not_kept"] = replay.last_recording is before
    for experts in (256, 300):
        model = bench.build(num_moe_experts=experts)
        replay = enable_router_replay(model)
        shape = ModelShape(bench.LAYERS, bench.TOPK, experts)
        with replay.step(record=True), torch.no_grad():
            replay.begin_microbatch(unrouted(bench.ROWS, shape), bench.row_ids())
            scored = bench.forward(model).item()
        recorded = replay.last_recording.packed(0)
        loss, _ = bench.replay_train(model, replay, recorded)
        found[experts] = [str(recorded.experts.dtype), loss == scored]
    return found


def wholly_recorded_with_padding():
    """Padding rows hold balanced experts in the pass that is recorded, and in the update."""
    model = bench.build()
    padding = np.arange(bench.ROWS) >= bench.ROWS - 5
    given = unrouted(bench.ROWS, SHAPE, padding=padding)
    replay = enable_router_replay(model)
    with replay.step(record=True), torch.no_grad():
        replay.begin_microbatch(given, bench.row_ids())
        bench.forward(model)
    rows = [list(replay.last_step.rows)]
    recorded = replay.last_recording.packed(0)
    bench.replay_train(model, replay, recorded)
    return {
        "rows": [*rows, list(replay.last_step.rows)],
        "padding_kept": bool((recorded.experts[padding] == given.experts[padding, 1:]).all()),
    }
