"""`enable_router_replay`: check everything about a built model, then bind to its routers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from routereplay.patches.megatron.agreement import model_reasons, place_layers
from routereplay.patches.megatron.binding import Binding
from routereplay.patches.megatron.discovery import Discovery, FoundChunk, discover
from routereplay.patches.megatron.host import MegatronChunk
from routereplay.patches.megatron.layer import MegatronLayer
from routereplay.patches.megatron.validation import validate
from routereplay.patches.models import RoutedModel
from routereplay.patches.replay.bundled import BundledRoutes
from routereplay.patches.replay.canary import canaries
from routereplay.patches.replay.chunk import ChunkReplay
from routereplay.patches.replay.errors import ReplayUnsupported
from routereplay.patches.replay.prefetch import Staging
from routereplay.patches.replay.replay import RouterReplay

logger = logging.getLogger(__name__)


def enable_router_replay(
    model_chunks: Sequence[nn.Module] | nn.Module,
    *,
    model: RoutedModel | None = None,
    layer_map: Mapping[int, int] | None = None,
    canary_every: int = 1,
    canary_layer: int | None = None,
    routereplay_bundle: str | os.PathLike[str] | None = None,
) -> RouterReplay:
    """Make every decoder router of a built model replay recorded experts.

    Args:
        model_chunks: the model, or its chunks in the order of virtual pipeline stages,
            as `forward_backward_func` takes them; wrapped or not. Multi-token prediction
            keeps its own routing.
        model: the model that was sampled, by `routed_model(hf_config)`: the Megatron model
            must agree with it on layers, experts, topk and gate weights, and the layers of
            a hybrid model are placed by it. Without it, the routes of each microbatch are
            compared with the Megatron model in experts and topk, and nothing knows whether
            its layers and its score function are those of the model that was sampled.
        layer_map: layer number (1-based, Megatron-Core's) to decoder layer of the
            recorded routes (0-based, vLLM's). By default `layer_number - 1`; a hybrid
            model, which counts attention and Mamba layers too, needs this or `model`.
        canary_every: steps between two comparisons of recorded experts with the router's
            own choice, on one layer of a step's first microbatch; 0 never compares, for
            routes that are foreign on purpose.
        canary_layer: the layer (1-based) that is compared, on the rank that holds it; by
            default each layer of each rank in turn.
        routereplay_bundle: path of the `ReplayBundle` that the job replays, whose batches
            `begin_bundled` begins; each rank reads its own layers and rows of it.

    Raises:
        ReplayUnsupported: once, with everything that cannot be replayed. Nothing was
            changed.
        BundleNotFound, UnsupportedWireVersion, CorruptRecord, InvalidRoutes, ReplayMismatch:
            the bundle is not there, torn, or of another model.
        ValueError: `canary_every` is negative, or no router is on `canary_layer`.
    """
    chunks = [model_chunks] if isinstance(model_chunks, nn.Module) else list(model_chunks)
    unplaced: list[str] = []
    if layer_map is None:
        layer_map, unplaced = place_layers(model, chunks)
    found = discover(chunks, layer_map)
    reasons, warnings = validate(found)
    reasons += _taken(found)
    reasons += unplaced
    if model is not None:
        reasons += model_reasons(model, found)
    if reasons:
        raise ReplayUnsupported(reasons)
    for warning in warnings:
        logger.warning("router replay: %s", warning)
    hosts = [MegatronChunk(chunk) for chunk in found.chunks]
    bundle = None
    if routereplay_bundle is not None:
        bundle = BundledRoutes(routereplay_bundle, hosts, model)
    numbers = [host.layer_numbers for host in hosts]
    whole = getattr(found.chunks[0].config, "pipeline_model_parallel_size", 1) == 1
    watching = canaries(canary_every, canary_layer, numbers, whole=whole)
    staging = Staging()
    replayed, unbind = [], []
    for chunk, host, canary in zip(found.chunks, hosts, watching, strict=True):
        made = ChunkReplay(host, staging, canary, MegatronLayer)
        unbind += _bind(chunk, made)
        replayed.append(made)
    return RouterReplay(replayed, staging, unbind, bundle)


def _bind(found: FoundChunk, chunk: ChunkReplay[MegatronLayer]) -> list[Callable[[], None]]:
    """Hand each router its part of `chunk`; return what undoes it."""
    hook = found.decoder.register_forward_pre_hook(chunk.enter_decoder)
    bindings = [
        Binding(router, layer) for router, layer in zip(found.routers, chunk.layers, strict=True)
    ]
    return [hook.remove, *(binding.undo for binding in bindings)]


def _taken(found: Discovery) -> list[str]:
    return [
        f"layer {router.layer_number} (1-based) is replayed already; disable() that first"
        for chunk in found.chunks
        for router in chunk.routers
        if isinstance(getattr(router.router, "router_replay", None), MegatronLayer)
    ]
