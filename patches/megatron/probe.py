"""Ask the real router, before training, whether it executes the ids that it is handed.

A version, a fork or a subclass that stops to ask is caught here, whatever its reason,
instead of training on its own choice in silence.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function

from routereplay.patches.megatron.discovery import FoundRouter

_PROBE_ROWS = 4


class _Probe:
    """Stands where Megatron-Core keeps its RouterReplay, and hands out known ids."""

    def __init__(self, num_experts: int, topk: int, device: torch.device) -> None:
        rows = torch.arange(_PROBE_ROWS, device=device).unsqueeze(1)
        slots = torch.arange(topk, device=device)
        self.ids = (rows * 3 + slots) % num_experts

    def get_replay_topk(
        self, scores: torch.Tensor, *_unused: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return scores.gather(1, self.ids), self.ids


def probe_router(found: FoundRouter) -> str | None:
    """Route four rows through `found` with known ids; return why that failed, or None.

    Under no_grad, so that neither the expert-bias counter nor an auxiliary loss moves.
    The logits prefer the other experts, so that a live choice cannot pass for a replay.
    """
    router = found.router
    config = router.config
    if not hasattr(router, "router_replay"):
        return (
            f"layer {found.layer_number} (1-based): {type(router).__name__} has no router_replay; "
            "Megatron-Core 0.16 is the first that can replay"
        )
    probe = _Probe(config.num_moe_experts, config.moe_router_topk, router.weight.device)
    expected = _map_of(probe.ids, config.num_moe_experts)
    logits = (~expected).to(router.weight.dtype).unsqueeze(1)
    previous, router.router_replay = router.router_replay, probe
    try:
        with torch.no_grad():
            _, executed = router.routing(logits)
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
        return _broken(found, f"raised {type(error).__name__}: {error}")
    finally:
        router.router_replay = previous
    if executed.shape != expected.shape or not torch.equal(executed.bool(), expected):
        return _broken(found, "executed other experts than those it was handed")
    return None


def probe_gradients(config: Any) -> str | None:
    """Return why gradients do not reach the logits of replayed experts, or None."""
    probe = _Probe(config.num_moe_experts, config.moe_router_topk, torch.device("cpu"))
    logits = torch.linspace(-1, 1, _PROBE_ROWS * config.num_moe_experts)
    logits = logits.reshape(_PROBE_ROWS, -1).requires_grad_()
    with torch.enable_grad():
        try:
            probs, _ = topk_routing_with_score_function(
                logits,
                config.moe_router_topk,
                use_pre_softmax=config.moe_router_pre_softmax,
                scaling_factor=config.moe_router_topk_scaling_factor,
                score_function=config.moe_router_score_function,
                router_replay=probe,
            )
        except (RuntimeError, TypeError, ValueError) as error:
            return f"topk_routing_with_score_function raised {type(error).__name__}: {error}"
        if not probs.requires_grad:
            return "the weights of replayed experts carry no gradient to the router's logits"
        # Unequal weights: the sum of a softmax has no gradient.
        (probs * torch.arange(probs.numel()).view_as(probs)).sum().backward()
    replayed = _map_of(probe.ids, config.num_moe_experts)
    # One softmaxed expert always has the weight 1: no gradient is the right one.
    constant = (
        config.moe_router_topk == 1
        and config.moe_router_score_function == "softmax"
        and not config.moe_router_pre_softmax
    )
    if not constant and not bool((logits.grad[replayed] != 0).any()):
        return "the gradient of replayed experts' weights is zero at the router's logits"
    return None


def _map_of(ids: torch.Tensor, num_experts: int) -> torch.Tensor:
    routing_map = torch.zeros(len(ids), num_experts, dtype=torch.bool, device=ids.device)
    return routing_map.scatter_(1, ids, value=True)


def _broken(found: FoundRouter, what: str) -> str:
    return (
        f"layer {found.layer_number} (1-based): {type(found.router).__name__}.routing {what} when "
        "probed with known ids; replay relies on it asking router_replay.get_replay_topk"
    )
