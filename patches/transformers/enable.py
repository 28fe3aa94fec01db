"""`enable_router_replay`: check everything about a loaded model, then hook its routers."""

from __future__ import annotations

import functools
import logging
from typing import Any

from torch import nn

from routereplay.patches.models import RoutedModel, routed_model
from routereplay.patches.replay.canary import canaries
from routereplay.patches.replay.chunk import ChunkReplay
from routereplay.patches.replay.errors import ReplayUnsupported
from routereplay.patches.replay.prefetch import Staging
from routereplay.patches.replay.replay import RouterReplay
from routereplay.patches.transformers.discovery import Discovery, base_model, discover
from routereplay.patches.transformers.host import DecoderHook, TransformersModel
from routereplay.patches.transformers.layer import HookedLayer
from routereplay.patches.transformers.probe import probe_router
from routereplay.patches.transformers.weights import WEIGH, Weigh

logger = logging.getLogger(__name__)


def enable_router_replay(
    model: nn.Module,
    *,
    routed: RoutedModel | None = None,
    weigh: Weigh | None = None,
    canary_every: int = 1,
    canary_layer: int | None = None,
) -> RouterReplay:
    """Make every router of a causal language model of transformers replay recorded experts.

    Args:
        model: loaded; wrapped by DDP, FSDP, torch.compile or PEFT, or not.
        routed: what was sampled; by default `routed_model(model.config)`.
        weigh: how the routers of a model type that is not in `WEIGH` weigh the chosen
            experts; it is held against the router's own class like every other.
        canary_every: steps between two comparisons of recorded experts with the router's
            own choice, on one layer of a step's first microbatch; 0 never compares.
        canary_layer: the layer (1-based) that is compared; by default each in turn.

    Raises:
        ReplayUnsupported: once, with everything that cannot be replayed. Nothing was changed.
        DenseModel, UnknownModel, InvalidModelConfig: see `routed_model`.
        ValueError: `canary_every` is negative, or no router is on `canary_layer`.
    """
    config: Any = base_model(model).config
    routed = routed or routed_model(config)
    found = discover(model, routed)
    recipe = weigh or WEIGH.get(routed.model_type)
    reasons = found.reasons + _weight_reasons(found, routed, _text(config), recipe)
    if found.decoder is None or recipe is None or reasons:
        raise ReplayUnsupported(reasons)
    if getattr(_text(config), "router_jitter_noise", 0.0):
        logger.warning("router replay: router_jitter_noise moves hidden states in training")
    staging = Staging()
    host = TransformersModel(found.routers)
    (canary,) = canaries(canary_every, canary_layer, [host.layer_numbers], whole=True)
    chunk = ChunkReplay(host, staging, canary, functools.partial(HookedLayer, weigh=recipe))
    hooks = [found.decoder.register_forward_pre_hook(DecoderHook(chunk), with_kwargs=True)]
    for router, layer in zip(found.routers, chunk.layers, strict=True):
        hooks.append(router.router.register_forward_hook(layer.replace_output))
    return RouterReplay([chunk], staging, [hook.remove for hook in hooks])


def _weight_reasons(
    found: Discovery, routed: RoutedModel, config: Any, recipe: Weigh | None
) -> list[str]:
    if recipe is None:
        return [
            f"nobody said how {routed.model_type} weighs the chosen experts; pass weigh=, or use "
            f"one of {', '.join(sorted(WEIGH))}"
        ]
    if not found.routers:
        return []
    reason = probe_router(found.routers[0].router, config, recipe)
    return [] if reason is None else [reason]


def _text(config: Any) -> Any:
    get_text_config = getattr(config, "get_text_config", None)
    return get_text_config() if callable(get_text_config) else config
