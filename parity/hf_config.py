"""Read a Hugging Face `config.json` into the sizes and switches that the conversion needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routereplay.client import ModelShape
from routereplay.parity.errors import ConversionError
from routereplay.parity.hf_families import FAMILIES, Family


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """The sizes of a gated delta net."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The sizes and switches of a decoder's checkpoint."""

    model_type: str
    prefix: str
    """What the names of the decoder's tensors begin with."""
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dense_size: int
    expert_size: int
    shared_size: int
    """Of the expert that every token uses; 0 for none."""
    num_experts: int
    topk: int
    moe_layers: tuple[bool, ...]
    """Of each decoder layer, whether it is a MoE layer."""
    linear_layers: tuple[bool, ...]
    """Of each decoder layer, whether a gated delta net stands in the place of attention."""
    linear: LinearAttention | None
    renormalise: bool
    """Whether the weights of the chosen experts sum to 1."""
    vocab_size: int
    max_tokens: int
    norm_eps: float
    rope_theta: float
    rope_share: float
    """Share of a head's dimensions that turn with the position."""
    tied_embeddings: bool

    @property
    def family(self) -> Family:
        """What is special in its family."""
        return FAMILIES[self.model_type]

    @property
    def routes(self) -> ModelShape | None:
        """The shape of its routes; None for a dense model, which has none."""
        if not any(self.moe_layers):
            return None
        return ModelShape(self.num_layers, self.topk, self.num_experts)


def read_hf_config(path: Path) -> DecoderShape:
    """Read `config.json` of the checkpoint folder `path`; of a multimodal one its text model.

    Raises:
        ConversionError: another architecture, or a switch that the conversion does not know.
    """
    whole: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    raw: dict[str, Any] = whole.get("text_config") or whole
    family = _known_family(raw, path)
    rope = raw.get("rope_parameters") or {}
    layers = raw["num_hidden_layers"]
    moe_layers = _moe_layers(raw) if family.experts else (False,) * layers
    head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    kinds = raw.get("layer_types") or [] if family.linear_attention else []
    return DecoderShape(
        model_type=raw["model_type"],
        prefix="model.language_model." if "text_config" in whole else "model.",
        num_layers=layers,
        hidden_size=raw["hidden_size"],
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        head_dim=head_dim,
        dense_size=raw.get("intermediate_size") or 4 * raw["hidden_size"],
        expert_size=raw[family.experts.size] if any(moe_layers) and family.experts else 0,
        shared_size=raw["shared_expert_intermediate_size"] if family.shared_experts else 0,
        # transformers 5 writes one name, earlier releases the other.
        num_experts=raw.get("num_experts") or raw.get("num_local_experts") or 0,
        topk=raw.get("num_experts_per_tok") or 0,
        moe_layers=moe_layers,
        linear_layers=tuple(kind == "linear_attention" for kind in kinds) or (False,) * layers,
        linear=_linear_attention(raw) if family.linear_attention else None,
        renormalise=(
            bool(raw.get("norm_topk_prob", False))
            if family.renormalise is None
            else family.renormalise
        ),
        vocab_size=raw["vocab_size"],
        max_tokens=raw["max_position_embeddings"],
        norm_eps=raw["rms_norm_eps"],
        rope_theta=rope.get("rope_theta") or raw.get("rope_theta") or 10000.0,
        rope_share=rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0,
        tied_embeddings=whole.get("tie_word_embeddings", raw.get("tie_word_embeddings", False)),
    )


def _moe_layers(raw: dict[str, Any]) -> tuple[bool, ...]:
    step, dense = raw.get("decoder_sparse_step", 1), set(raw.get("mlp_only_layers") or ())
    return tuple(
        layer_idx not in dense and (layer_idx + 1) % step == 0
        for layer_idx in range(raw["num_hidden_layers"])
    )


def _linear_attention(raw: dict[str, Any]) -> LinearAttention:
    return LinearAttention(
        key_heads=raw["linear_num_key_heads"],
        value_heads=raw["linear_num_value_heads"],
        key_dim=raw["linear_key_head_dim"],
        value_dim=raw["linear_value_head_dim"],
        kernel=raw["linear_conv_kernel_dim"],
    )


def _known_family(raw: dict[str, Any], path: Path) -> Family:
    family = FAMILIES.get(raw.get("model_type", ""))
    if family is None:
        known = ", ".join(f"{name} ({one.title})" for name, one in FAMILIES.items())
        msg = (
            f"{path}/config.json has model_type={raw.get('model_type')!r}; the conversion to "
            f"Megatron-Core knows {known}"
        )
        raise ConversionError(msg)
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    expected: dict[str, Any] = {"hidden_act": "silu", **family.expected}
    found = {name: raw.get(name) for name in expected}
    if found.get("qkv_bias", True) is None:
        found["qkv_bias"] = True  # Older configs do not name it.
    wrong = [
        f"{name}={found[name]!r}"
        for name, wanted in expected.items()
        if (found[name] or None) != (wanted or None)
    ]
    if (rope_type := rope.get("rope_type") or rope.get("type") or "default") != "default":
        wrong.append(f"rope_type={rope_type!r}")
    if wrong:
        msg = (
            f"{path}/config.json has {', '.join(wrong)}; the conversion knows {family.title} with "
            f"plain rotary embedding and {', '.join(f'{k}={v!r}' for k, v in expected.items())}"
        )
        raise ConversionError(msg)
    return family
