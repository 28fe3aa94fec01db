"""Find the routers of a transformers model, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from routereplay.patches.models import RoutedModel
from routereplay.patches.replay.wrapping import unwrap


@dataclass(frozen=True, slots=True)
class FoundRouter:
    """One router of the decoder."""

    router: Any
    """A module that returns `(logits, weights, ids)`."""
    layer_idx: int
    """0-based decoder layer, as in the recorded routes."""

    @property
    def layer_number(self) -> int:
        """1-based, as errors and reports count."""
        return self.layer_idx + 1


@dataclass(slots=True)
class Discovery:
    """What was found, and what speaks against replaying it."""

    decoder: nn.Module | None = None
    routers: tuple[FoundRouter, ...] = ()
    reasons: list[str] = field(default_factory=list)


def base_model(model: nn.Module) -> nn.Module:
    """Return the transformers model inside DDP, FSDP, torch.compile and PEFT."""
    inside = unwrap(model)
    get_base_model = getattr(inside, "get_base_model", None)
    base = get_base_model() if callable(get_base_model) else inside
    return inside if base is inside else base_model(base)


def discover(model: nn.Module, routed: RoutedModel) -> Discovery:
    """Walk the decoder of `model`, collecting routers and everything that is wrong."""
    found = Discovery()
    inside = base_model(model)
    get_decoder = getattr(inside, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    layers = getattr(decoder, "layers", None)
    if not isinstance(decoder, nn.Module) or not isinstance(layers, nn.ModuleList):
        found.reasons.append(
            f"{type(inside).__name__} has no decoder with layers; pass a causal language model of "
            "transformers >= 5"
        )
        return found
    found.decoder = decoder
    found.routers = tuple(
        FoundRouter(router, layer_idx)
        for layer_idx, layer in enumerate(layers)
        for router in _routers(layer)
    )
    found.reasons += _layer_reasons(found.routers, len(layers), routed)
    found.reasons += [
        reason for router in found.routers for reason in _router_reasons(router, routed)
    ]
    return found


def _routers(layer: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in layer.modules()
        if type(module).__name__.endswith("Router")
        and isinstance(getattr(module, "top_k", None), int)
        and isinstance(getattr(module, "num_experts", None), int)
    ]


def _layer_reasons(
    routers: Sequence[FoundRouter], num_layers: int, routed: RoutedModel
) -> list[str]:
    reasons = []
    if num_layers != routed.num_layers:
        reasons.append(
            f"the model has {num_layers} decoder layers, {routed.model_type} by its config "
            f"{routed.num_layers}"
        )
    found = [router.layer_idx for router in routers]
    if found != list(routed.moe_layers):
        reasons.append(
            f"layers {found} (0-based) hold one router each where {routed.model_type} routes in "
            f"{list(routed.moe_layers)}; a router is a module named ...Router with top_k and "
            "num_experts, as transformers >= 5 has it"
        )
    return reasons


def _router_reasons(found: FoundRouter, routed: RoutedModel) -> list[str]:
    router = found.router
    where = f"layer {found.layer_idx} (0-based): {type(router).__name__}"
    reasons = []
    if (router.top_k, router.num_experts) != (routed.topk, routed.num_experts):
        reasons.append(
            f"{where} chooses {router.top_k} of {router.num_experts} experts, "
            f"{routed.model_type} by its config {routed.topk} of {routed.num_experts}"
        )
    if router._forward_hooks:
        # Expert parallelism of transformers exchanges the ids for those of its rank in such a
        # hook: ours would hand it experts it has counted already.
        reasons.append(
            f"{where} has forward hooks already ({len(router._forward_hooks)}): of expert "
            "parallelism, of another replay, or yours. Remove them, or enable replay before they "
            "are added if they only look"
        )
    return reasons
