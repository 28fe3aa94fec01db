"""Microbatches staged ahead on the worker thread."""

import contextlib

import bench

from routereplay.patches.megatron import ReplayMismatch, ReplayStateError, enable_router_replay
from routereplay.patches.replay.prefetch import MAX_AHEAD

SEEDS = range(6)


def run(ahead):
    """Two steps of six microbatches, two in flight; return losses, gradients and reports."""
    model = bench.build("full")
    replay = enable_router_replay(model)
    routes = [bench.random_routes(seed) for seed in SEEDS]
    losses, reports = [], []
    if ahead:
        replay.prefetch(routes[0], bench.row_ids())
    for _ in range(2):
        with replay.step():
            open_losses = []
            for seed in SEEDS:
                replay.begin_microbatch(routes[seed], bench.row_ids())
                if ahead:
                    replay.prefetch(routes[(seed + 1) % len(routes)], bench.row_ids())
                open_losses.append(bench.forward(model, seed))
                if len(open_losses) == 2:
                    losses.append(open_losses[0].item())
                    open_losses.pop(0).backward()
            open_losses.pop().backward()
        reports.append(replay.last_step.prefetched)
    replay.disable()
    return losses, bench.gradients(model), reports


def is_the_same():
    plain, ahead = run(False), run(True)
    return {
        "losses_equal": plain[0] == ahead[0],
        "gradient_difference": bench.gradient_difference(plain[1], ahead[1]),
        "prefetched": [plain[2], ahead[2]],
    }


def other_batches_may_come_first():
    model = bench.build()
    replay = enable_router_replay(model)
    waiting, other = bench.random_routes(1), bench.random_routes(2)
    right = bench.replay_train(model, replay, other)
    replay.prefetch(waiting, bench.row_ids())
    first = bench.replay_train(model, replay, other)
    counts = [replay.last_step.prefetched]
    bench.replay_train(model, replay, waiting)
    return {"equal": first[0] == right[0], "prefetched": [*counts, replay.last_step.prefetched]}


def a_failed_step_drops_them():
    model = bench.build()
    replay = enable_router_replay(model)
    packed = bench.random_routes(1)
    with contextlib.suppress(ZeroDivisionError), replay.step():
        replay.prefetch(packed, bench.row_ids())
        raise ZeroDivisionError
    bench.replay_train(model, replay, packed)
    return replay.last_step.prefetched


def rows_that_are_not_there():
    """What the worker finds wrong is raised when the microbatch begins."""
    replay = enable_router_replay(bench.build())
    packed, ids = bench.random_routes(1), bench.row_ids() + 1
    replay.prefetch(packed, ids)
    with contextlib.suppress(ReplayMismatch), replay.step():
        replay.begin_microbatch(packed, ids)
        return "began"
    return "refused"


def without_end():
    replay = enable_router_replay(bench.build())
    packed = bench.random_routes(1)
    for count in range(MAX_AHEAD + 1):
        try:
            replay.prefetch(packed, bench.row_ids())
        except ReplayStateError as error:
            return {"count": count, "code": error.code}
    return None
