"""Seeded, random checkpoints of every family that the parity tools convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from routereplay.parity.tiny_moe import common_config, write_checkpoint

ABSENT = object()
_MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"head_dim": ABSENT}),
    "qwen3": ("Qwen3", {}),
    "mixtral": ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2Moe", {"head_dim": ABSENT, "shared_expert_intermediate_size": 48} | _MOE),
    "qwen3_moe": ("Qwen3Moe", {"norm_topk_prob": True} | _MOE),
    "qwen3_5_moe_text": (
        "Qwen3_5Moe",
        {
            "intermediate_size": ABSENT,
            "shared_expert_intermediate_size": 48,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        }
        | _MOE,
    ),
}


def write_tiny(model_type: str, path: Path, *, seed: int = 0) -> Path:
    """Write a checkpoint of three layers to `path` and return it; weights are bf16 values."""
    title, fields = _FAMILIES[model_type]
    absent = {name for name, value in fields.items() if value is ABSENT}
    given = {k: v for k, v in (common_config(3) | fields).items() if k not in absent}
    suffix = "TextConfig" if model_type.endswith("_text") else "Config"
    config = getattr(transformers, title + suffix)(**given)
    model = getattr(transformers, f"{title}ForCausalLM")(config)
    return write_checkpoint(model, path, seed)


def fuse_experts(path: Path) -> None:
    """Write the experts of each layer as one tensor, as some checkpoints have them."""
    weights = load_file(path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    for layer_idx in range(config["num_hidden_layers"]):
        hf = f"model.layers.{layer_idx}.mlp.experts"
        each: dict[str, list[torch.Tensor]] = {
            part: [weights.pop(f"{hf}.{e}.{part}.weight") for e in range(config["num_experts"])]
            for part in ("gate_proj", "up_proj", "down_proj")
        }
        halves = [torch.stack(each["gate_proj"]), torch.stack(each["up_proj"])]
        weights[f"{hf}.gate_up_proj"] = torch.cat(halves, dim=1)
        weights[f"{hf}.down_proj"] = torch.stack(each["down_proj"])
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def make_multimodal(path: Path) -> None:
    """Dress a text checkpoint up as the decoder of a model with a vision tower and drafts."""
    weights = load_file(path / "model.safetensors")
    named = {
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in weights.items()
    }
    named["model.visual.patch_embed.weight"] = torch.zeros(2)
    named["mtp.fc.weight"] = torch.zeros(2)
    save_file(named, path / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((path / "config.json").read_text())
    whole = {"model_type": text["model_type"].removesuffix("_text"), "text_config": text}
    (path / "config.json").write_text(json.dumps(whole))
