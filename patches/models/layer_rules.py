"""Which decoder layers of a Hugging Face model are MoE layers.

A rule reads a text config, as a dict, and returns one bool for each decoder layer:
what the model's own code decides when it builds the layers (`modeling_*.py` of
transformers, or the remote code of the checkpoint). None of them counts the layers of
multi-token prediction, which no config has in `num_hidden_layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from routereplay.patches.models.errors import InvalidModelConfig

Config: TypeAlias = Mapping[str, Any]
LayerRule: TypeAlias = Callable[[Config], list[bool]]


def every_layer(config: Config) -> list[bool]:
    """Every layer routes: Mixtral, OLMoE, gpt-oss, MiniMax-M2, Qwen3.5-MoE."""
    return [True] * integer(config, "num_hidden_layers")


def every_nth_layer(config: Config) -> list[bool]:
    """Every `decoder_sparse_step`-th layer routes, `mlp_only_layers` never: Qwen MoE."""
    step = integer(config, "decoder_sparse_step", default=1)
    dense = set(config.get("mlp_only_layers") or ())
    if step < 1:
        msg = f"{name_of(config)}: decoder_sparse_step is {step}; expected 1 or more"
        raise InvalidModelConfig(msg)
    layers = range(integer(config, "num_hidden_layers"))
    return [idx not in dense and (idx + 1) % step == 0 for idx in layers]


def dense_first(config: Config) -> list[bool]:
    """The first `first_k_dense_replace` layers are dense: DeepSeek, Kimi, GLM, Moonlight.

    After them every `moe_layer_freq`-th layer routes, 1 for all released models.
    transformers 5 spells the same as `mlp_layer_types` for some of them.
    """
    types = config.get("mlp_layer_types")
    if types is None:
        return _after_the_first(config)
    routed = _named(config, "mlp_layer_types", types, {"sparse": True, "dense": False})
    if config.get("first_k_dense_replace") is not None and routed != _after_the_first(config):
        msg = f"{name_of(config)}: mlp_layer_types and first_k_dense_replace contradict each other"
        raise InvalidModelConfig(msg)
    return routed


def hybrid_pattern(config: Config) -> list[bool]:
    """Layers are attention, Mamba, MLP *or* MoE: Nemotron-H.

    `hybrid_override_pattern` has a letter for each layer (`M`, `*`, `-`, `E`);
    transformers 5 writes `layers_block_type` instead, with names.
    """
    types = config.get("layers_block_type")
    if types is not None:
        return [kind == "moe" for kind in types]
    pattern = config.get("hybrid_override_pattern")
    if not isinstance(pattern, str):
        raise _missing(config, "layers_block_type or hybrid_override_pattern")
    return [kind == "E" for kind in pattern]


def integer(config: Config, key: str, *, default: int | None = None) -> int:
    """Return the integer under `key`, or raise `InvalidModelConfig`."""
    value = config.get(key, default)
    if value is None:
        raise _missing(config, key)
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"{name_of(config)}: {key} is {value!r}; expected an integer"
        raise InvalidModelConfig(msg)
    return value


def name_of(config: Config) -> str:
    """Return how errors name a config."""
    return f"config of model_type {config.get('model_type')!r}"


def _after_the_first(config: Config) -> list[bool]:
    dense = integer(config, "first_k_dense_replace")
    step = integer(config, "moe_layer_freq", default=1)
    if step < 1:
        msg = f"{name_of(config)}: moe_layer_freq is {step}; expected 1 or more"
        raise InvalidModelConfig(msg)
    layers = range(integer(config, "num_hidden_layers"))
    return [idx >= dense and idx % step == 0 for idx in layers]


def _named(config: Config, key: str, types: Any, routes: Mapping[str, bool]) -> list[bool]:
    unknown = sorted({repr(kind) for kind in types if kind not in routes})
    if unknown:
        msg = f"{name_of(config)}: {key} holds {', '.join(unknown)}; expected {sorted(routes)}"
        raise InvalidModelConfig(msg)
    return [routes[kind] for kind in types]


def _missing(config: Config, key: str) -> InvalidModelConfig:
    msg = (
        f"{name_of(config)} has no {key}, which its family always has; pass the whole config.json "
        "of the checkpoint, or describe the model with RoutedModel(...)"
    )
    return InvalidModelConfig(msg, key=key)
