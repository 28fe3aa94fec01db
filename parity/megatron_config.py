"""Say in Megatron-Core's words what a checkpoint's config says: configuration and layers."""

from __future__ import annotations

import copy
from typing import Any

import torch

from routereplay.parity.delta_net import gated_delta_net
from routereplay.parity.errors import ConversionError
from routereplay.parity.hf_config import DecoderShape
from routereplay.parity.norms import norm_of


def transformer_config(shape: DecoderShape, dtype: torch.dtype, **overrides: Any) -> Any:
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
        "normalization": "RMSNorm",
        "layernorm_epsilon": shape.norm_eps,
        "qk_layernorm": shape.family.qk_norm,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "add_qkv_bias": shape.family.qkv_bias,
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
    if shape.routes is not None:
        fields |= _moe_fields(shape)
    if shape.linear is not None:
        fields |= _linear_fields(shape)
    return TransformerConfig(**(fields | overrides))


def block_spec(shape: DecoderShape, config: Any) -> Any:
    """Return the layers of this pipeline stage: Megatron-Core's local ones, and its delta nets."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm")
    if shape.linear is not None:
        # Layers of one kind share a spec.
        spec.layer_specs = [copy.deepcopy(layer) for layer in spec.layer_specs]
        offset = get_transformer_layer_offset(config)
        for local_idx, layer in enumerate(spec.layer_specs):
            if shape.linear_layers[offset + local_idx]:
                layer.submodules.self_attention = _delta_net(shape, config)
    if (norm := norm_of(shape, config)) is not None:
        for layer in spec.layer_specs:
            parts = layer.submodules
            parts.input_layernorm = parts.pre_mlp_layernorm = norm
            attention = parts.self_attention.submodules
            if shape.family.qk_norm and hasattr(attention, "q_layernorm"):
                attention.q_layernorm = attention.k_layernorm = norm
        spec.layer_norm = norm
    return spec


def _moe_fields(shape: DecoderShape) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "moe_ffn_hidden_size": shape.expert_size,
        "num_moe_experts": shape.num_experts,
        "moe_router_topk": shape.topk,
        "moe_layer_freq": [int(moe) for moe in shape.moe_layers],
        # A softmax over the chosen logits is the softmax over all, renormalised.
        "moe_router_pre_softmax": not shape.renormalise,
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_token_dispatcher_type": "alltoall",
    }
    if shape.shared_size:
        fields["moe_shared_expert_intermediate_size"] = shape.shared_size
        fields["moe_shared_expert_gate"] = True
    return fields


def _linear_fields(shape: DecoderShape) -> dict[str, Any]:
    linear = shape.linear
    assert linear is not None
    return {
        "attention_output_gate": True,
        "linear_num_key_heads": linear.key_heads,
        "linear_num_value_heads": linear.value_heads,
        "linear_key_head_dim": linear.key_dim,
        "linear_value_head_dim": linear.value_dim,
        "linear_conv_kernel_dim": linear.kernel,
        # The delta rule in torch, without Triton's kernels: on any device, in any dtype.
        "deterministic_mode": True,
    }


def _delta_net(shape: DecoderShape, config: Any) -> Any:
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    if config.tensor_model_parallel_size > 1:
        msg = f"{shape.family.title} has gated delta nets, which are not cut here; use tp1"
        raise ConversionError(msg)
    module, submodules = gated_delta_net()
    return ModuleSpec(
        module=module,
        submodules=submodules(
            in_proj=ColumnParallelLinear, out_norm=WrappedTorchNorm, out_proj=RowParallelLinear
        ),
    )
