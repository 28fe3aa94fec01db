"""The model families that can be converted to Megatron-Core: what is special in each, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class ExpertNames(NamedTuple):
    """What a family calls the parts of its experts."""

    block: str
    """The MoE block of a layer; `gate` in it is the router."""
    gate: str
    up: str
    down: str
    size: str
    """The config's key for the hidden size of an expert."""


_PLAIN = ExpertNames("mlp", "gate_proj", "up_proj", "down_proj", "moe_intermediate_size")
_MIXTRAL = ExpertNames("block_sparse_moe", "w1", "w3", "w2", "intermediate_size")


@dataclass(frozen=True, slots=True)
class Family:
    """One `model_type` of Hugging Face configs.

    What a config can switch to something that the conversion does not know stands in
    `expected`, with the values that it knows.
    """

    title: str
    experts: ExpertNames | None = None
    """None for a dense family."""
    qk_norm: bool = False
    qkv_bias: bool = False
    renormalise: bool | None = None
    """Whether the weights of the chosen experts sum to 1; None asks `norm_topk_prob`."""
    shared_experts: bool = False
    """Beside the routed experts one that every token uses, behind a gate of its own."""
    linear_attention: bool = False
    """`layer_types` may name gated delta nets; attention has an output gate, norms are 1 + w."""
    expected: Mapping[str, Any] = field(default_factory=dict)


_NO_BIAS = {"attention_bias": False}
_NO_WINDOW = {"use_sliding_window": False}

FAMILIES: Mapping[str, Family] = {
    "llama": Family("Llama", expected=_NO_BIAS | {"mlp_bias": False}),
    "mistral": Family("Mistral", expected={"sliding_window": None}),
    "qwen2": Family("Qwen2", qkv_bias=True, expected=_NO_WINDOW),
    "qwen3": Family("Qwen3", qk_norm=True, expected=_NO_BIAS | _NO_WINDOW),
    "mixtral": Family("Mixtral", _MIXTRAL, renormalise=True, expected={"sliding_window": None}),
    "qwen2_moe": Family(
        "Qwen2-MoE",
        _PLAIN,
        qkv_bias=True,
        shared_experts=True,
        expected=_NO_WINDOW | {"qkv_bias": True},
    ),
    "qwen3_moe": Family("Qwen3-MoE", _PLAIN, qk_norm=True, expected=_NO_BIAS | _NO_WINDOW),
    "qwen3_5_moe_text": Family(
        "Qwen3.5-MoE and Qwen3.6-MoE",
        _PLAIN,
        qk_norm=True,
        renormalise=True,
        shared_experts=True,
        linear_attention=True,
        expected=_NO_BIAS,
    ),
}
"""By `model_type` of the text config."""
