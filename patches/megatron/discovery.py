"""Find the live decoder routers of a model, and nothing else.

Live means: reached from the modules that run. Megatron-Core's own list of router-replay
instances is in the order of construction and holds routers of other models, of
multi-token prediction and of decoders that were built twice and thrown away
(Megatron-LM issue 7404, verl issue 7340), so it is never read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import nn

from routereplay.patches.replay.wrapping import unwrap


@dataclass(frozen=True, slots=True)
class FoundRouter:
    """One router of the decoder."""

    router: Any
    layer_number: int
    """1-based, over the whole model, as Megatron-Core stamped it on the layer."""
    layer_idx: int
    """0-based decoder layer of the recorded routes that this router replays."""


@dataclass(frozen=True, slots=True)
class FoundChunk:
    """One model chunk (virtual pipeline stage) of this rank."""

    vp_stage: int
    decoder: nn.Module
    config: Any
    routers: tuple[FoundRouter, ...]


@dataclass(slots=True)
class Discovery:
    """What was found, and what speaks against replaying it."""

    chunks: list[FoundChunk] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def decoder_of(chunk: nn.Module) -> nn.Module | None:
    """Return the decoder of a chunk, also inside a multimodal model, or None.

    Only the decoder: multi-token prediction has MoE layers too, whose layer numbers
    collide with the decoder's from Megatron-Core 0.17 on.
    """
    model = unwrap(chunk)
    decoder = getattr(model, "decoder", None)
    if isinstance(decoder, nn.Module):
        return decoder
    language_model = getattr(model, "language_model", None)
    return decoder_of(language_model) if isinstance(language_model, nn.Module) else None


def _has_second_decoder(chunk: nn.Module, decoder: nn.Module) -> bool:
    """Whether `decoder` and another decoder of the chunk both hold routers."""
    language_model = getattr(unwrap(chunk), "language_model", None)
    twin = decoder_of(language_model) if isinstance(language_model, nn.Module) else None
    return twin not in (None, decoder) and all(
        any(isinstance(module, TopKRouter) for module in each.modules()) for each in (decoder, twin)
    )


def discover(chunks: Sequence[nn.Module], layer_map: Mapping[int, int] | None) -> Discovery:
    """Walk the decoders of `chunks`, collecting routers and everything that is wrong."""
    found = Discovery()
    if not chunks:
        found.reasons.append("no model chunk was given")
    for vp_stage, chunk in enumerate(chunks):
        decoder = decoder_of(chunk)
        if decoder is None:
            found.reasons.append(
                f"chunk {vp_stage}: {type(unwrap(chunk)).__name__} has neither `.decoder` nor "
                "`.language_model.decoder`; pass the model that Megatron-Core built"
            )
            continue
        if _has_second_decoder(chunk, decoder):
            found.reasons.append(
                f"chunk {vp_stage}: {type(unwrap(chunk)).__name__} has both `.decoder` and "
                "`.language_model.decoder`, and both hold routers: it was built twice, and "
                "nothing says which one runs; delete the other, or pass the part that runs"
            )
        config = getattr(decoder, "config", None) or getattr(unwrap(chunk), "config", None)
        routers = _routers(decoder, layer_map, found.reasons)
        found.chunks.append(FoundChunk(vp_stage, decoder, config, routers))
        _check_expected(vp_stage, decoder, config, routers, found.reasons)
    _check_layers(found)
    return found


def _routers(
    decoder: nn.Module, layer_map: Mapping[int, int] | None, reasons: list[str]
) -> tuple[FoundRouter, ...]:
    routers = []
    for module in decoder.modules():
        if not isinstance(module, TopKRouter):
            continue
        number = module.layer_number
        if number is None:
            reasons.append("a router of the decoder has no layer_number; replay cannot place it")
        elif layer_map is not None and number not in layer_map:
            reasons.append(f"layer {number} (1-based) is not in layer_map")
        else:
            layer_idx = number - 1 if layer_map is None else layer_map[number]
            routers.append(FoundRouter(module, number, layer_idx))
    return tuple(sorted(routers, key=lambda found: found.layer_number))


def _check_expected(
    vp_stage: int,
    decoder: nn.Module,
    config: Any,
    routers: Sequence[FoundRouter],
    reasons: list[str],
) -> None:
    layers = getattr(decoder, "layers", ())
    numbers = [number for layer in layers if (number := getattr(layer, "layer_number", None))]
    if routers:
        expected = [number for number in numbers if _is_moe(number, config)]
        found = {router.layer_number for router in routers}
        missing = [number for number in expected if number not in found]
        # A hybrid model counts attention and Mamba layers too; its frequency means nothing.
        if missing and isinstance(decoder, TransformerBlock):
            reasons.append(
                f"chunk {vp_stage}: moe_layer_freq makes layers {missing} (1-based) MoE layers, "
                "but they hold no TopKRouter; a router of another class cannot be replayed"
            )
    elif not numbers and getattr(config, "pipeline_model_parallel_size", 1) > 1:
        return  # A stage of the embedding or of the loss only, as a pipeline layout may have.
    elif not numbers or any(_is_moe(number, config) for number in numbers):
        reasons.append(
            f"chunk {vp_stage}: no MoE layer found in its decoder (layers {numbers}, 1-based); "
            "is this the model that is trained, after it was built?"
        )


def _is_moe(layer_number: int, config: Any) -> bool:
    if getattr(config, "num_moe_experts", None) is None:
        return True  # Nothing says which layers are dense, so none may be taken for dense.
    frequency = getattr(config, "moe_layer_freq", 1)
    if isinstance(frequency, int):
        return (layer_number - 1) % frequency == 0
    return bool(frequency[layer_number - 1])


def _check_layers(found: Discovery) -> None:
    owner: dict[int, FoundRouter] = {}
    for chunk in found.chunks:
        for router in chunk.routers:
            first = owner.setdefault(router.layer_idx, router)
            if first is not router:
                found.reasons.append(
                    f"layers {first.layer_number} and {router.layer_number} (1-based) would both "
                    f"replay plane {router.layer_idx}; each recorded layer has one router"
                )
