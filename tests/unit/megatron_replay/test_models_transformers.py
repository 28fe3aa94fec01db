"""The registry against transformers itself: its config classes, and the layers it builds."""

import pytest

pytest.importorskip("megatron.core")
pytest.importorskip("transformers")

import torch
import transformers
from support.model_configs import NEMOTRON_PATTERN

from routereplay.patches.megatron import DenseModel, routed_model

pytestmark = pytest.mark.megatron

SMALL = {
    "num_hidden_layers": 6,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "num_experts_per_tok": 2,
}
BUILT = {
    "qwen2_moe": {"decoder_sparse_step": 2, "num_experts": 8},
    "qwen3_moe": {"mlp_only_layers": [0, 3], "num_experts": 8},
    "qwen3_next": {"mlp_only_layers": [1], "num_experts": 8},
    "qwen3_5_moe_text": {"num_experts": 8},
    "deepseek_v2": {"first_k_dense_replace": 2, "n_routed_experts": 8},
    "deepseek_v3": {"first_k_dense_replace": 3, "n_routed_experts": 8, "n_group": 1},
    "deepseek_v32": {"n_routed_experts": 8, "n_group": 1},
    "glm4_moe": {"first_k_dense_replace": 1, "n_routed_experts": 8},
    "glm4_moe_lite": {"n_routed_experts": 8},
    "gpt_oss": {"num_local_experts": 8},
    "minimax_m2": {"num_local_experts": 8},
    "mixtral": {"num_local_experts": 8},
    "olmoe": {"num_experts": 8},
}


def build(model_type, **fields):
    """The real model on the meta device, and its config."""
    config = transformers.AutoConfig.for_model(model_type, **(SMALL | fields))
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config), config


def layers_with_experts(model):
    return tuple(
        layer_idx
        for layer_idx, layer in enumerate(model.get_decoder().layers)
        if any(name.split(".")[-1] == "experts" for name, _ in layer.named_modules())
    )


@pytest.mark.parametrize("model_type", BUILT)
def test_the_layers_that_transformers_builds_with_experts_are_those_that_route(model_type):
    model, config = build(model_type, **BUILT[model_type])
    found = routed_model(config)
    assert found.moe_layers == layers_with_experts(model)
    assert (found.num_layers, found.num_experts, found.topk) == (6, 8, 2)
    assert routed_model(config.to_diff_dict()) == found, "as save_pretrained() writes it"


def test_a_hybrid_model_routes_where_transformers_builds_experts():
    blocks = [{"M": "mamba", "*": "attention", "E": "moe"}[letter] for letter in NEMOTRON_PATTERN]
    config = transformers.AutoConfig.for_model(
        "nemotron_h", **SMALL, layers_block_type=blocks, n_routed_experts=8
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert routed_model(config).moe_layers == layers_with_experts(model)


@pytest.mark.parametrize(
    ("model_type", "text_type"),
    [
        ("qwen3_vl_moe", "qwen3_vl_moe_text"),
        ("qwen3_5_moe", "qwen3_5_moe_text"),
        ("qwen3_omni_moe", "qwen3_omni_moe_text"),
        ("glm4v_moe", "glm4v_moe_text"),
        ("kimi_k25", "deepseek_v3"),
    ],
)
def test_the_text_model_of_a_multimodal_config_class_is_found(model_type, text_type):
    config = transformers.AutoConfig.for_model(model_type)
    text = config.get_text_config()
    found = routed_model(config)
    assert found.model_type == text_type == text.model_type
    assert (found.num_layers, found.topk) == (text.num_hidden_layers, text.num_experts_per_tok)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "qwen3_5", "glm4", "gemma3", "mistral"])
def test_a_dense_config_class_is_dense(model_type):
    with pytest.raises(DenseModel):
        routed_model(transformers.AutoConfig.for_model(model_type))
