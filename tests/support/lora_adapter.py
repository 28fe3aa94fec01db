"""A LoRA adapter of the attention, as peft writes it, and the same change merged into a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
_RANK, _ALPHA = 4, 8


def write_adapter(folder: Path, model_path: Path, seed: int = 0) -> Callable[[Any], None]:
    """Write an adapter strong enough to change routes; return what merges it into the model."""
    from safetensors import safe_open

    generator = torch.Generator().manual_seed(seed)
    deltas, tensors = {}, {}
    with safe_open(model_path / "model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - not a mapping
            module = name.removesuffix(".weight")
            if module.rpartition(".")[2] not in MODULES:
                continue
            rows, columns = weights.get_slice(name).get_shape()
            down = torch.randn(_RANK, columns, generator=generator) * columns**-0.5
            up = torch.randn(rows, _RANK, generator=generator) * 0.5
            tensors[f"base_model.model.{module}.lora_A.weight"] = down
            tensors[f"base_model.model.{module}.lora_B.weight"] = up
            deltas[module] = up @ down * (_ALPHA / _RANK)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": _RANK,
        "lora_alpha": _ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(MODULES),
        "base_model_name_or_path": str(model_path),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))

    def merge(model: Any) -> None:
        for module, delta in deltas.items():
            model.get_submodule(module).weight += delta

    return merge
