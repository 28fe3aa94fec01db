"""Read a Qwen3-MoE `config.json` and say the same thing in Megatron-Core's words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from routereplay.parity.errors import ConversionError


@dataclass(frozen=True, slots=True)
class Qwen3MoeShape:
    """The sizes and switches of a Qwen3-MoE checkpoint."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dense_size: int
    expert_size: int
    num_experts: int
    topk: int
    moe_layers: tuple[bool, ...]
    """Of each decoder layer, whether it is a MoE layer."""
    renormalise: bool
    """Whether the weights of the chosen experts sum to 1."""
    vocab_size: int
    max_tokens: int
    norm_eps: float
    rope_theta: float
    tied_embeddings: bool


def read_qwen3_moe_config(path: Path) -> Qwen3MoeShape:
    """Read `config.json` of the checkpoint folder `path`.

    Raises:
        ConversionError: another architecture, or a switch that the conversion does not know.
    """
    raw: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    _check_known(raw, path)
    rope = raw.get("rope_parameters") or {}
    sparse_step = raw.get("decoder_sparse_step", 1)
    dense = set(raw.get("mlp_only_layers") or ())
    return Qwen3MoeShape(
        num_layers=raw["num_hidden_layers"],
        hidden_size=raw["hidden_size"],
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw["num_key_value_heads"],
        head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
        dense_size=raw["intermediate_size"],
        expert_size=raw["moe_intermediate_size"],
        # transformers 5 writes one name, earlier releases the other.
        num_experts=raw["num_experts"] if "num_experts" in raw else raw["num_local_experts"],
        topk=raw["num_experts_per_tok"],
        moe_layers=tuple(
            layer_idx not in dense and (layer_idx + 1) % sparse_step == 0
            for layer_idx in range(raw["num_hidden_layers"])
        ),
        renormalise=raw.get("norm_topk_prob", False),
        vocab_size=raw["vocab_size"],
        max_tokens=raw["max_position_embeddings"],
        norm_eps=raw["rms_norm_eps"],
        rope_theta=rope.get("rope_theta") or raw.get("rope_theta") or 10000.0,
        tied_embeddings=raw.get("tie_word_embeddings", False),
    )


def transformer_config(shape: Qwen3MoeShape, dtype: torch.dtype, **overrides: Any) -> Any:
    """Return Megatron-Core's `TransformerConfig` for `shape`, without fusions.

    Args:
        dtype: of parameters and arithmetic, torch.float32 or torch.bfloat16.
        overrides: any field of `TransformerConfig`, for example its recompute ones.
    """
    from megatron.core.transformer.transformer_config import TransformerConfig

    fields: dict[str, Any] = {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_heads,
        "num_query_groups": shape.num_kv_heads,
        "kv_channels": shape.head_dim,
        "ffn_hidden_size": shape.dense_size,
        "moe_ffn_hidden_size": shape.expert_size,
        "num_moe_experts": shape.num_experts,
        "moe_router_topk": shape.topk,
        "moe_layer_freq": [int(moe) for moe in shape.moe_layers],
        # A softmax over the chosen logits is the softmax over all, renormalised.
        "moe_router_pre_softmax": not shape.renormalise,
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_token_dispatcher_type": "alltoall",
        "normalization": "RMSNorm",
        "layernorm_epsilon": shape.norm_eps,
        "qk_layernorm": True,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "params_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "use_cpu_initialization": True,
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": False,
        "bias_activation_fusion": False,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
    }
    return TransformerConfig(**(fields | overrides))


def _check_known(raw: dict[str, Any], path: Path) -> None:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    expected = {
        "model_type": (raw.get("model_type"), "qwen3_moe"),
        "hidden_act": (raw.get("hidden_act"), "silu"),
        "attention_bias": (bool(raw.get("attention_bias")), False),
        "use_sliding_window": (bool(raw.get("use_sliding_window")), False),
        "rope_type": (rope.get("rope_type", "default"), "default"),
    }
    wrong = [f"{name}={found!r}" for name, (found, wanted) in expected.items() if found != wanted]
    if wrong:
        msg = (
            f"{path}/config.json has {', '.join(wrong)}; the conversion knows Qwen3-MoE with "
            "SiLU, plain rotary embedding, full attention and no attention bias"
        )
        raise ConversionError(msg)
