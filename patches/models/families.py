"""The model families whose routing is known, as data, and how to add one."""

from __future__ import annotations

from typing import NamedTuple

from routereplay.patches.models.errors import UnknownModel
from routereplay.patches.models.layer_rules import (
    LayerRule,
    dense_first,
    every_layer,
    every_nth_layer,
    hybrid_pattern,
)


class Family(NamedTuple):
    """How a family of models routes, and where its config says so."""

    moe_layers: LayerRule

    score_function: str
    """Unless the config has `scoring_func`, as DeepSeek's remote code does."""

    renormalizes: bool | None = None
    """Whether a softmax's chosen weights sum to one; None: the config's `norm_topk_prob`."""

    experts_keys: tuple[str, ...] = ("num_experts", "num_local_experts", "n_routed_experts")
    """Where the number of routed experts stands. transformers 5 renames some of them
    when it saves, so any is read; two that differ are an error."""

    topk_keys: tuple[str, ...] = ("num_experts_per_tok",)


_QWEN = Family(every_nth_layer, "softmax")
_DEEPSEEK_V3 = Family(dense_first, "sigmoid")

_FAMILIES: dict[str, Family] = {
    "qwen2_moe": _QWEN,
    "qwen3_moe": _QWEN,
    "qwen3_next": _QWEN,
    "qwen3_omni_moe_text": _QWEN,
    # It and Qwen3.5 normalise always and have no key for it.
    "qwen3_vl_moe_text": Family(every_nth_layer, "softmax", renormalizes=True),
    # Qwen3.5 and Qwen3.6.
    "qwen3_5_moe_text": Family(every_layer, "softmax", renormalizes=True),
    "deepseek_v2": Family(dense_first, "softmax"),
    # DeepSeek-V3, V3.1, R1; Moonlight names itself so too.
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    # GLM-4.5, 4.5-Air, 4.6 and 4.7; the text model of GLM-4.5V.
    "glm4_moe": _DEEPSEEK_V3,
    "glm4v_moe_text": _DEEPSEEK_V3,
    "glm4_moe_lite": _DEEPSEEK_V3,
    "gpt_oss": Family(every_layer, "softmax", renormalizes=True),
    "minimax_m2": Family(every_layer, "sigmoid"),
    "mixtral": Family(every_layer, "softmax", renormalizes=True),
    "olmoe": Family(every_layer, "softmax"),
    "nemotron_h": Family(hybrid_pattern, "sigmoid"),
}
"""`model_type` of the text config to family. One table for the process, added to by
`register_model` alone: a model type means the same everywhere."""


def register_model(model_type: str, family: Family | str) -> None:
    """Make `routed_model` know configs of `model_type`.

    Args:
        model_type: as in config.json; of the text config if the model is multimodal.
        family: how it routes, or the model type of a registered family that routes alike.

    Raises:
        UnknownModel: `family` names a model type that is not registered.
        ValueError: `model_type` is registered and routes otherwise.
    """
    added = family_of(family) if isinstance(family, str) else family
    if added is None:
        msg = f"cannot register {model_type!r} like {family!r}: {family!r} is not registered"
        raise UnknownModel(msg, model_type=str(family))
    if _FAMILIES.setdefault(model_type, added) != added:
        msg = f"{model_type!r} is registered already and routes otherwise"
        raise ValueError(msg)


def family_of(model_type: str | None) -> Family | None:
    """Return the family of a model type, None if nobody registered it."""
    return None if model_type is None else _FAMILIES.get(model_type)


def registered_models() -> tuple[str, ...]:
    """Return every model type that is known, sorted."""
    return tuple(sorted(_FAMILIES))
