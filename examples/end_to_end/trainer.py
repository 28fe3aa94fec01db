"""One training step: score with live routing, replay forward and backward, compare."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from end_to_end.batch import Batch
from routereplay.parity.comparison import Mismatch, compare
from routereplay.parity.executed import executed_experts
from routereplay.parity.hf_to_megatron import load_hf_checkpoint
from routereplay.parity.scoring import policy_gradient_packed, score_packed
from routereplay.patches.megatron import enable_router_replay, routed_model


@dataclass(frozen=True)
class StepResult:
    """What one training step showed."""

    off: Mismatch
    on: Mismatch
    loss: float
    router_gradient_norm: float
    router_calls: int


def train(checkpoint: Path, batch: Batch, *, canary_every: int = 1) -> StepResult:
    """Score the batch with live routing, then replay it forward and backward.

    Args:
        canary_every: 0 for routes that are foreign to the model on purpose.
    """
    model = load_hf_checkpoint(checkpoint)
    sampled_from = routed_model(json.loads((checkpoint / "config.json").read_text()))
    layers, topk = batch.routes.experts.shape[1:]
    recorded = ~(batch.routes.live | batch.routes.padding)
    token_ids = torch.from_numpy(batch.token_ids)[None]
    cu_seqlens = torch.from_numpy(batch.cu_seqlens)

    replay = enable_router_replay(model, model=sampled_from, canary_every=canary_every)
    with replay.bypass(), executed_experts(model, layers, topk) as live:
        scores = score_packed(model, token_ids, cu_seqlens)
    off = compare(scores, batch.sampled, live[0], batch.routes.experts, recorded)

    advantages = torch.zeros(batch.routes.num_tokens)
    advantages[batch.sampled.positions] = 1.0
    row_ids = torch.arange(batch.routes.num_tokens)[None]
    with replay.step(), executed_experts(model, layers, topk) as replayed:
        replay.begin_microbatch(batch.routes, row_ids)
        loss, scores = policy_gradient_packed(model, token_ids, cu_seqlens, advantages)
    on = compare(scores, batch.sampled, replayed[0], batch.routes.experts, recorded)
    gradients = [p.grad for name, p in model.named_parameters() if "router" in name]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return StepResult(off, on, loss, float(norm), replay.last_step.router_calls)
