"""The life of a replay: enabled, bypassed, aborted, refused, disabled."""

import contextlib
import copy

import bench
import torch
from megatron.core.transformer.moe.router_replay import RouterReplay as NativeReplay
from scenarios import replay_fresh

from routereplay.patches.megatron import enable_router_replay
from routereplay.wire.errors import RouteReplayError


def bypass_routes_live():
    model = bench.build("full")
    live_loss, live_grads = bench.train(model)
    replay = enable_router_replay(model)
    packed = bench.random_routes(1)
    with replay.bypass():
        loss, grads = bench.train(model)
    with replay.step():
        replay.begin_microbatch(packed, bench.row_ids())
        with replay.bypass(), torch.no_grad():
            inside = bench.forward(model).item()
        replayed = bench.train(model)[0]
    return {
        "loss_equal": loss == live_loss and inside == live_loss,
        "gradient_difference": bench.gradient_difference(grads, live_grads),
        "replayed_differs": replayed != live_loss,
    }


def forward_only(no_grad_around):
    """Log-probs under no_grad leave nothing to recompute."""
    model = bench.build("full")
    replay = enable_router_replay(model)
    packed = bench.random_routes(1)
    outer, inner = torch.no_grad(), contextlib.nullcontext()
    if no_grad_around == "model":
        outer, inner = inner, outer
    with replay.step(), outer:
        replay.begin_microbatch(packed, bench.row_ids())
        with inner:
            loss = bench.forward(model).item()
    return {
        "loss_equal": loss == bench.replay_train(model, replay, packed)[0],
    }


def disable_restores(native):
    model = bench.build(moe_enable_routing_replay=native)
    before = [router.router_replay for router in bench.routers(model)]
    live = bench.train(model)
    replay = enable_router_replay(model)
    replaced = [router.router_replay is not old for router, old in _zip(model, before)]
    replay.disable()
    replay.disable()
    again = bench.train(model)
    return {
        "replaced": all(replaced),
        "native": [isinstance(old, NativeReplay) for old in before],
        "restored": all(router.router_replay is old for router, old in _zip(model, before)),
        "hooks": sum(len(module._forward_pre_hooks) for module in model.modules()),
        "loss_equal": again[0] == live[0],
        "gradient_difference": bench.gradient_difference(again[1], live[1]),
    }


def state_dict_is_unchanged():
    model = bench.build()
    before = list(model.state_dict())
    enable_router_replay(model)
    return {"equal": list(model.state_dict()) == before}


def abort_then_train():
    """A step that dies between forward and backward leaves nothing to the next."""
    model = bench.build("full")
    replay = enable_router_replay(model)
    packed = bench.random_routes(1)
    with contextlib.suppress(ZeroDivisionError), replay.step():
        replay.begin_microbatch(bench.random_routes(2), bench.row_ids())
        bench.forward(model)
        raise ZeroDivisionError
    loss, grads = bench.replay_train(model, replay, packed)
    right_loss, right_grads = replay_fresh(packed)
    return {
        "loss_equal": loss == right_loss,
        "gradient_difference": bench.gradient_difference(grads, right_grads),
    }


def error_of(case):
    """Return class, code and message of the error that `case` ends in, None without one."""
    import misuse

    try:
        getattr(misuse, case)()
    except RouteReplayError as error:
        return {"type": type(error).__name__, "code": error.code, "message": str(error)}
    return None


def refusal_changes_nothing():
    model = bench.build()
    model.config.moe_router_fusion = True
    with contextlib.suppress(RouteReplayError):
        enable_router_replay(model)
    return {
        "untouched": all(router.router_replay is None for router in bench.routers(model)),
        "hooks": sum(len(module._forward_pre_hooks) for module in model.modules()),
    }


def probe_is_without_effect():
    """Probing must not move the expert-bias counter of a router."""
    model = bench.build(
        moe_router_enable_expert_bias=True,
        moe_router_score_function="sigmoid",
        moe_router_bias_update_rate=0.0,
    )
    before = copy.deepcopy([router.local_tokens_per_expert for router in bench.routers(model)])
    enable_router_replay(model)
    return {
        "untouched": all(
            torch.equal(router.local_tokens_per_expert, old) for router, old in _zip(model, before)
        )
    }


def _zip(model, others):
    return zip(bench.routers(model), others, strict=True)
