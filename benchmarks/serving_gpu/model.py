"""A folder that vLLM takes for Qwen3-30B-A3B, without weights: `--load-format dummy`."""

from __future__ import annotations

import json
from pathlib import Path

TRUE = {"hidden_size": 2048, "moe_intermediate_size": 768}
"""Qwen3-30B-A3B as it is: 61 GB of weights, one server a card."""
SMALL = {"hidden_size": 2048, "moe_intermediate_size": 128}
"""The same layers, experts, top-k and attention, and so the same routes, with 11 GB of weights:
three servers fit one card side by side. Its steps are shorter, so what recording costs a step
weighs more."""


def make(folder: Path, sizes: dict[str, int]) -> Path:
    """Write config and tokenizer; return the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    alphabet = {letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    vocabulary = alphabet | {f"<{i}>": i for i in range(len(alphabet), 1024)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<1023>")
    fast.save_pretrained(folder)
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "intermediate_size": 6144,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": 1023,
        "torch_dtype": "bfloat16",
        **sizes,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder
