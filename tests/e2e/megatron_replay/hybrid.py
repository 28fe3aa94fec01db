"""A hybrid model of stock Megatron-Core: attention, MLP and MoE are layers of their own."""

import copy

import bench
import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

try:
    from megatron.core.models.hybrid.hybrid_block import HybridStack as Stack
    from megatron.core.models.hybrid.hybrid_block import HybridStackSubmodules as Submodules
    from megatron.core.models.hybrid.hybrid_model import HybridModel as Model

    PATTERN_ARGUMENT, SPEC_ARGUMENT = "hybrid_layer_pattern", "hybrid_stack_spec"
except ImportError:  # Named so before 0.18.
    from megatron.core.models.mamba.mamba_model import MambaModel as Model
    from megatron.core.ssm.mamba_block import MambaStack as Stack
    from megatron.core.ssm.mamba_block import MambaStackSubmodules as Submodules

    PATTERN_ARGUMENT, SPEC_ARGUMENT = "hybrid_override_pattern", "mamba_stack_spec"

PATTERN = "*E*-*E*E"
"""Four decoder layers of a Hugging Face model, of which the second is dense."""

_ATTENTION = ("input_layernorm", "self_attention", "self_attn_bda")
_MLP = ("pre_mlp_layernorm", "mlp", "mlp_bda")


def build(pattern=PATTERN):
    """Return a first pipeline stage, whose outputs are hidden states: the last norm needs TE."""
    config = copy.copy(bench.build().config)
    config.num_layers, config.moe_layer_freq = len(pattern), 1
    dense = get_gpt_layer_local_spec(normalization="RMSNorm")
    moe = get_gpt_layer_local_spec(
        num_experts=bench.EXPERTS, moe_grouped_gemm=False, normalization="RMSNorm"
    )
    stack = Submodules(
        attention_layer=_only(dense, _ATTENTION),
        mlp_layer=_only(dense, _MLP),
        moe_layer=_only(moe, _MLP),
    )
    torch.manual_seed(0)
    model = Model(
        config,
        vocab_size=bench.VOCAB,
        max_sequence_length=64,
        position_embedding_type="rope",
        post_process=False,
        **{SPEC_ARGUMENT: ModuleSpec(module=Stack, submodules=stack), PATTERN_ARGUMENT: pattern},
    )
    return model.train()


def _only(spec, names):
    kept = {name: getattr(spec.submodules, name) for name in names}
    return ModuleSpec(module=TransformerLayer, submodules=TransformerLayerSubmodules(**kept))
