"""A seeded, random, one-megabyte MoE checkpoint in Hugging Face format.

Small enough for a laptop, real enough for every part of the path: Qwen3-MoE's own
config, weights in safetensors, a tokenizer and a chat template. One character is one
token, so text that went through a chat client tokenizes back to the tokens that were
sampled and the turns of a conversation extend each other.

Random weights route like noise: use it to prove alignment, not to judge a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

END_OF_TURN = "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] or '' }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)

VOCAB_SIZE = 512


def write_tiny_moe(
    path: str | Path,
    *,
    num_layers: int = 4,
    dense_layers: tuple[int, ...] = (0,),
    num_experts: int = 16,
    topk: int = 4,
    head_dim: int = 32,
    seed: int = 0,
) -> Path:
    """Write a Qwen3-MoE checkpoint to `path` and return it. Weights are bf16 values.

    Both engines read the same bits whatever dtype they compute in: a server in bfloat16
    and a trainer in float32 then differ by their arithmetic alone.
    """
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        **common_config(num_layers, head_dim),
        moe_intermediate_size=64,
        num_experts=num_experts,
        num_experts_per_tok=topk,
        decoder_sparse_step=1,
        norm_topk_prob=True,
        mlp_only_layers=list(dense_layers),
    )
    return write_checkpoint(Qwen3MoeForCausalLM(config), Path(path), seed)


def write_tiny_dense(path: str | Path, *, num_layers: int = 2, seed: int = 0) -> Path:
    """Write a dense Qwen3 checkpoint to `path` and return it: the model that has no routes."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**common_config(num_layers))
    return write_checkpoint(Qwen3ForCausalLM(config), Path(path), seed)


def characters() -> list[str]:
    """Return the 511 characters of the vocabulary; none is changed by Unicode normalisation."""
    ranges = [
        range(0x20, 0x7F),
        range(0xA1, 0xAD),
        range(0xAE, 0x100),
        range(0x100, 0x180),
        range(0x400, 0x460),
        range(0x4E00, 0x4F00),
    ]
    return ["\n", *(chr(code) for span in ranges for code in span)][: VOCAB_SIZE - 1]


def seed_weights(model: Any, seed: int) -> None:
    """Set every weight from `seed`, in the same scale whatever the model's size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            if "norm" in name:
                # Qwen3.5's norms multiply by 1 + weight, all but those behind a gate.
                centred = "qwen3_5" in model.config.model_type and "linear_attn" not in name
                parameter.copy_(0.1 * noise + (0 if centred else 1))
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            elif name.endswith("gate.weight"):
                # Spread the router's logits, so that a top-k is no coin toss.
                parameter.copy_(noise * (2.0 / parameter.shape[-1] ** 0.5))
            elif name == "lm_head.weight":
                # Peaked enough that sampled tokens are likelier than chance.
                parameter.copy_(noise * (3.0 / parameter.shape[-1] ** 0.5))
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)


def common_config(num_layers: int, head_dim: int = 32) -> dict[str, Any]:
    """Return the fields that every tiny checkpoint's config has."""
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }


def write_checkpoint(model: Any, path: Path, seed: int) -> Path:
    """Seed `model`, write it in bfloat16 with the tokenizer to `path`, and return the path."""
    seed_weights(model, seed)
    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.generation_config.eos_token_id = 0
    model.save_pretrained(path, safe_serialization=True)
    _tokenizer().save_pretrained(path)
    return path


def _tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {END_OF_TURN: 0} | {char: i for i, char in enumerate(characters(), start=1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TURN,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
