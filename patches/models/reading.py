"""A Hugging Face config to a `RoutedModel`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from routereplay.patches.models.errors import (
    DenseModel,
    InvalidModelConfig,
    UnknownModel,
)
from routereplay.patches.models.families import Family, family_of, registered_models
from routereplay.patches.models.layer_rules import Config, integer, name_of
from routereplay.patches.models.routed_model import RoutedModel

_TEXT_CONFIGS = ("text_config", "thinker_config", "llm_config")
"""Where multimodal configs keep the config of the language model."""

_SPEAKS_OF_EXPERTS = re.compile(r"expert|(^|_)moe(_|$)")


def routed_model(config: Any) -> RoutedModel:
    """Return what a Hugging Face config says about routing.

    Args:
        config: the dict of a config.json, or a transformers config object. Of a
            multimodal model its text config is read.

    Raises:
        DenseModel: the model has no routed experts: there is nothing to replay.
        UnknownModel: it has, and its `model_type` is not registered.
        InvalidModelConfig: a key is missing, or keys contradict each other.
        TypeError: `config` is neither.
    """
    levels = list(_levels(_as_dict(config)))
    text = levels[-1]
    # A text config may leave its type to the config around it, as remote code does.
    families = (family_of(level.get("model_type")) for level in reversed(levels))
    family = next((family for family in families if family is not None), None)
    if family is None:
        raise _unregistered(text)
    num_experts = _count(text, family.experts_keys)
    routes = family.moe_layers(text)
    moe_layers = tuple(layer_idx for layer_idx, moe in enumerate(routes) if moe)
    if not num_experts or not moe_layers:
        raise _dense(text)
    topk = _count(text, family.topk_keys)
    if not 1 <= topk <= num_experts:
        msg = f"{name_of(text)}: {family.topk_keys[0]} is {topk} with {num_experts} experts"
        raise InvalidModelConfig(msg)
    return RoutedModel(
        model_type=str(text.get("model_type") or levels[0].get("model_type")),
        num_layers=len(routes),
        moe_layers=moe_layers,
        num_experts=num_experts,
        topk=topk,
        score_function=text.get("scoring_func") or family.score_function,
        renormalizes=_renormalizes(text, family),
        scaling_factor=text.get("routed_scaling_factor"),
    )


def _as_dict(config: Any) -> Config:
    if isinstance(config, Mapping):
        return config
    if callable(to_dict := getattr(config, "to_dict", None)):
        read: Config = to_dict()
        return read
    msg = (
        f"a {type(config).__name__} is no Hugging Face config; expected the dict of a config.json "
        "or a transformers config object"
    )
    raise TypeError(msg)


def _levels(config: Config) -> Iterator[Config]:
    """Yield the config and, inside of each, the next text config."""
    yield config
    for key in _TEXT_CONFIGS:
        if isinstance(inner := config.get(key), Mapping):
            yield from _levels(inner)
            return


def _count(config: Config, keys: Sequence[str]) -> int:
    found = {key: integer(config, key) for key in keys if config.get(key) is not None}
    if len(set(found.values())) > 1:
        msg = f"{name_of(config)}: {found} contradict each other"
        raise InvalidModelConfig(msg)
    # Without any, the error names the key that the family's checkpoints have.
    return next(iter(found.values())) if found else integer(config, keys[0])


def _renormalizes(config: Config, family: Family) -> bool | None:
    if family.renormalizes is not None:
        return family.renormalizes
    value = config.get("norm_topk_prob")
    return None if value is None else bool(value)


def _unregistered(config: Config) -> DenseModel | UnknownModel:
    speaks = [key for key, value in config.items() if value and _SPEAKS_OF_EXPERTS.search(key)]
    if not speaks:
        return _dense(config)
    model_type = config.get("model_type")
    msg = (
        f"{name_of(config)} speaks of experts ({', '.join(sorted(speaks))}) and nobody said which "
        f"of its layers route. If it is built like a registered model, say so: "
        f"register_model({model_type!r}, 'qwen3_moe'). Otherwise register a Family(moe_layers="
        "..., score_function=...), or describe this one model with RoutedModel(...). Both are in "
        f"routereplay.patches.models. Registered: {', '.join(registered_models())}"
    )
    return UnknownModel(msg, model_type=model_type)


def _dense(config: Config) -> DenseModel:
    msg = (
        f"{name_of(config)} is dense: it has no routed experts, so there is nothing to replay; "
        "train it without enable_router_replay()"
    )
    return DenseModel(msg, model_type=config.get("model_type"))
