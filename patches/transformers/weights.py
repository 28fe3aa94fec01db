"""What the routers of transformers make of the logits of the experts that were chosen.

A router of transformers 5 returns `(logits, weights, ids)`. Replay exchanges the ids, so the
weights must be made again from the logits, exactly as that router makes them. The recipes
are read in `transformers/models/*/modeling_*.py` (5.23); `probe.py` holds each of them
against the router itself before anything is replayed.

Shape legend: T rows, E experts, K topk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.nn import functional

Weigh: TypeAlias = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
"""`(router, logits [T, E], ids [T, K] int64) -> weights [T, K]`, differentiable in logits."""


def softmax_of_all(router: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Softmax over every expert; the chosen ones sum to one if `norm_topk_prob` (Qwen, OLMoE)."""
    weights = functional.softmax(logits, dtype=torch.float, dim=-1).gather(1, ids)
    # Qwen3.5 has no such field and always normalises.
    if getattr(router, "norm_topk_prob", True):
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.to(logits.dtype)


def softmax_in_float32(router: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Softmax over every expert, normalised, left in float32 (Mixtral)."""
    weights = functional.softmax(logits.float(), dim=-1).gather(1, ids)
    return weights / weights.sum(dim=-1, keepdim=True)


def softmax_of_chosen(router: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Softmax over the chosen experts only (gpt-oss)."""
    chosen = logits.gather(1, ids)
    return functional.softmax(chosen, dim=1, dtype=chosen.dtype)


def scaled_softmax(router: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Softmax over every expert, scaled (DeepSeek-V2)."""
    weights = logits.softmax(dim=-1, dtype=torch.float32).gather(1, ids)
    return weights * router.routed_scaling_factor


def scaled_sigmoid(router: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Sigmoid, normalised if `norm_topk_prob`, scaled (DeepSeek-V3, GLM-4.5)."""
    weights = logits.sigmoid().gather(1, ids)
    if router.norm_topk_prob:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * router.routed_scaling_factor


def normalised_sigmoid(router: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Sigmoid in float32, normalised (MiniMax-M2)."""
    weights = torch.sigmoid(logits.float()).gather(1, ids)
    return weights / weights.sum(dim=-1, keepdim=True)


WEIGH: dict[str, Weigh] = {
    "qwen2_moe": softmax_of_all,
    "qwen3_moe": softmax_of_all,
    "qwen3_next": softmax_of_all,
    "qwen3_vl_moe_text": softmax_of_all,
    "qwen3_omni_moe_text": softmax_of_all,
    "qwen3_5_moe_text": softmax_of_all,
    "olmoe": softmax_of_all,
    "mixtral": softmax_in_float32,
    "gpt_oss": softmax_of_chosen,
    "deepseek_v2": scaled_softmax,
    "deepseek_v3": scaled_sigmoid,
    "deepseek_v32": scaled_sigmoid,
    "kimi_k2": scaled_sigmoid,
    "glm4_moe": scaled_sigmoid,
    "glm4v_moe_text": scaled_sigmoid,
    "glm4_moe_lite": scaled_sigmoid,
    "minimax_m2": normalised_sigmoid,
}
"""`model_type` of the text config to recipe."""
