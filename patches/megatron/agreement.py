"""Whether a built Megatron model is the `RoutedModel`, and which plane each router replays.

Numbering, read from Megatron-Core 0.16.1 and 0.19.2. A `GPTModel` stamps
`layer_number`, 1-based over all pipeline stages, on its transformer layers
(`transformer/transformer_layer.py`): it is the decoder layer plus one. A
`HybridModel`, `MambaModel` before 0.18, stamps the place in its layer pattern
(`models/hybrid/hybrid_block.py`, `ssm/mamba_block.py`), where attention, Mamba and MoE
each have one of their own: there the nth `E` of the pattern is the nth MoE layer of the
Hugging Face model, whatever stands between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from routereplay.patches.megatron.discovery import Discovery, FoundChunk
from routereplay.patches.models.routed_model import RoutedModel
from routereplay.patches.replay.wrapping import unwrap

LayerMap = Mapping[int, int]
"""Layer number (1-based, Megatron-Core's) to decoder layer of the routes (0-based)."""


class _Field(NamedTuple):
    """One field of `TransformerConfig` that a `RoutedModel` decides."""

    name: str
    default: Any
    expected: Callable[[RoutedModel], Any]
    """None: the registry does not know, and nothing is checked."""


def _pre_softmax(model: RoutedModel) -> bool | None:
    # Of one expert the softmax over the chosen is 1.0: Megatron-Core demands the other order.
    if model.score_function != "softmax" or model.renormalizes is None or model.topk == 1:
        return None
    return not model.renormalizes


_FIELDS: tuple[_Field, ...] = (
    _Field("num_moe_experts", None, lambda model: model.num_experts),
    _Field("moe_router_topk", None, lambda model: model.topk),
    _Field("moe_router_score_function", "softmax", lambda model: model.score_function),
    # Softmax before the choice leaves the weights as they are, after it they sum to one.
    _Field("moe_router_pre_softmax", False, _pre_softmax),
    _Field("moe_router_topk_scaling_factor", 1.0, lambda model: model.scaling_factor),
)


def hybrid_layer_map(model: RoutedModel, pattern: str) -> LayerMap:
    """Return the layer map of a `HybridModel` that was built from `pattern`.

    Args:
        pattern: `hybrid_layer_pattern`: a letter for each layer, `E` for MoE, `|` between
            pipeline stages, multi-token prediction after the first `/`.

    Raises:
        ValueError: the pattern has another number of MoE layers than the model.
    """
    numbers = _moe_numbers(pattern)
    if len(numbers) != len(model.moe_layers):
        msg = (
            f"the hybrid pattern {pattern!r} has {len(numbers)} MoE layers (E), "
            f"{model.model_type} has {len(model.moe_layers)}"
        )
        raise ValueError(msg)
    return dict(zip(numbers, model.moe_layers, strict=True))


def place_layers(
    model: RoutedModel | None, chunks: Sequence[nn.Module]
) -> tuple[LayerMap | None, list[str]]:
    """Return the layer map of a model, None for `layer_number - 1`, and what is in its way."""
    patterns = {pattern for chunk in chunks if (pattern := _hybrid_pattern(chunk))}
    routed = sorted(pattern for pattern in patterns if _moe_numbers(pattern))
    if not routed:
        return None, []
    if model is None:
        reason = (
            f"the hybrid pattern {routed[0]!r} counts attention, Mamba and MoE layers, so a "
            "layer_number does not say which recorded layer it is; pass model=routed_model(...) "
            "or layer_map="
        )
        return None, [reason]
    if len(routed) > 1:
        return None, [f"the chunks have different hybrid patterns: {routed}; pass layer_map="]
    try:
        return hybrid_layer_map(model, routed[0]), []
    except ValueError as error:
        return None, [f"{error}; is it the model that was sampled?"]


def model_reasons(model: RoutedModel, found: Discovery) -> list[str]:
    """Return in what the Megatron model differs from `model`."""
    reasons = [reason for chunk in found.chunks for reason in _chunk_reasons(model, chunk)]
    return list(dict.fromkeys(reasons))


def _chunk_reasons(model: RoutedModel, chunk: FoundChunk) -> list[str]:
    moe = set(model.moe_layers)
    reasons = _config_reasons(model, chunk.config)
    reasons += [
        f"layer {router.layer_number} (1-based) would replay layer {router.layer_idx} (0-based), "
        f"which is no MoE layer of {model.model_type}"
        for router in chunk.routers
        if router.layer_idx not in moe
    ]
    # A hybrid model counts other layers in num_layers, and leaves moe_layer_freq unread.
    if getattr(chunk.decoder, "layer_type_list", None) is None:
        reasons += _layer_reasons(model, chunk.config)
    return reasons


def _config_reasons(model: RoutedModel, config: Any) -> list[str]:
    reasons = []
    for field in _FIELDS:
        expected, found = field.expected(model), getattr(config, field.name, None)
        found = field.default if found is None else found
        if expected is not None and found != expected:
            reasons.append(
                f"{field.name} is {found!r}, {model.model_type} has {expected!r} by its Hugging "
                "Face config; build the model that was sampled"
            )
    return reasons


def _layer_reasons(model: RoutedModel, config: Any) -> list[str]:
    if config.num_layers != model.num_layers:
        return [
            f"num_layers is {config.num_layers}, {model.model_type} has {model.num_layers} decoder "
            "layers (multi-token prediction not counted)"
        ]
    frequency = getattr(config, "moe_layer_freq", 1)
    layers = range(config.num_layers)
    built = [
        idx
        for idx in layers
        if (idx % frequency == 0 if isinstance(frequency, int) else frequency[idx])
    ]
    if built == list(model.moe_layers):
        return []
    wrong = sorted(set(built) ^ set(model.moe_layers))
    return [
        f"moe_layer_freq={frequency!r} and {model.model_type} disagree on layers {wrong} "
        f"(0-based); its MoE layers are {list(model.moe_layers)}"
    ]


def _moe_numbers(pattern: str) -> list[int]:
    decoder = pattern.split("/")[0].replace("|", "")
    return [number for number, symbol in enumerate(decoder, start=1) if symbol == "E"]


def _hybrid_pattern(chunk: nn.Module) -> str | None:
    model = unwrap(chunk)
    while not isinstance(getattr(model, "decoder", None), nn.Module):
        inner = getattr(model, "language_model", None)
        if not isinstance(inner, nn.Module):
            return None
        model = unwrap(inner)
    # Renamed in 0.18, which fills the new name from the old argument.
    pattern = getattr(model, "hybrid_layer_pattern", None)
    return pattern or getattr(model, "hybrid_override_pattern", None)
