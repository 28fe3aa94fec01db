"""Score packed sequences with a Megatron-Core model: log-probs of the tokens that follow.

Shape legend: T tokens of the packed row, B sequences, P tokens that are predicted
(every token of a sequence but its first), M most probable tokens.

Megatron-Core's local attention refuses `packed_seq_params`, so the packed row is one
sequence with a block-diagonal causal mask. The two are the same: rotary embedding is
relative, so where in the row a sequence lies does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from routereplay.parity.metrics import TopLogprobs


@dataclass(frozen=True, eq=False, slots=True)
class PackedScores:
    """Log-probs of a packed row, in float32 on the CPU."""

    positions: np.ndarray
    """`[P]` flat index of each token that is predicted."""
    logprobs: np.ndarray
    """`[P]` its log-prob, given the tokens before it in its sequence."""
    top: TopLogprobs
    """`[P, M]` the most probable tokens there."""


def score_packed(
    model: Any,
    token_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    topk: int = 20,
    temperature: float = 1.0,
) -> PackedScores:
    """Score `token_ids` `[1, T]`, forward only, without gradients.

    Args:
        cu_seqlens: `[B + 1]` integers from 0 to T, the bounds of the sequences.
        topk: how many of the most probable tokens to return.
        temperature: the logits are divided by it.

    Raises:
        ValueError: the shapes or bounds are wrong.
    """
    with torch.no_grad():
        positions, logprobs = _logprobs(model, token_ids, cu_seqlens, temperature)
        return _scores(positions, logprobs, token_ids, topk)


def policy_gradient_packed(
    model: Any,
    token_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    advantages: torch.Tensor,
    *,
    topk: int = 20,
    temperature: float = 1.0,
) -> tuple[float, PackedScores]:
    """Score as `score_packed` does and run backward through a policy-gradient loss.

    The loss is `-sum(advantage * logprob) / max(number of advantages that are not 0, 1)`
    over the predicted tokens, so prompt tokens are masked by an advantage of 0.
    Gradients are added to the model's parameters.

    Args:
        advantages: `[T]` float, of each token as a sampled one.

    Returns:
        The loss, and the scores before the update.
    """
    positions, logprobs = _logprobs(model, token_ids, cu_seqlens, temperature)
    targets = token_ids[0, positions]
    sampled = logprobs.gather(1, targets.unsqueeze(1)).squeeze(1)
    weights = advantages[positions].to(sampled)
    loss = -(weights * sampled).sum() / weights.count_nonzero().clamp(min=1)
    loss.backward()
    with torch.no_grad():
        return float(loss), _scores(positions, logprobs, token_ids, topk)


def block_diagonal_causal_mask(cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Return `[1, 1, T, T]` bool, True where a token must not look (Megatron's sense)."""
    tokens = int(cu_seqlens[-1])
    sequence = torch.repeat_interleave(
        torch.arange(len(cu_seqlens) - 1, device=cu_seqlens.device), cu_seqlens.diff()
    )
    position = torch.arange(tokens, device=cu_seqlens.device)
    sees = (sequence[:, None] == sequence[None, :]) & (position[:, None] >= position[None, :])
    return ~sees[None, None]


def packed_inputs(
    token_ids: torch.Tensor, cu_seqlens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return position ids `[1, T]`, the mask, and the positions that are predicted `[P]`.

    Raises:
        ValueError: the shapes or bounds are wrong.
    """
    tokens = token_ids.shape[-1]
    bounds_fit = (
        cu_seqlens[0] == 0 and cu_seqlens[-1] == tokens and bool((cu_seqlens.diff() > 0).all())
    )
    if token_ids.shape != (1, tokens) or not bounds_fit:
        msg = (
            f"token_ids {tuple(token_ids.shape)} with cu_seqlens {cu_seqlens.tolist()}; expected "
            "[1, T] and rising bounds from 0 to T"
        )
        raise ValueError(msg)
    offsets = torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff())
    flat = torch.arange(tokens, device=token_ids.device)
    position_ids = (flat - offsets.to(flat.device)).unsqueeze(0)
    mask = block_diagonal_causal_mask(cu_seqlens.to(token_ids.device))
    return position_ids, mask, flat[position_ids[0] > 0]


def score_logits(
    logits: torch.Tensor, token_ids: torch.Tensor, positions: torch.Tensor, topk: int
) -> PackedScores:
    """Return the scores of `token_ids` `[1, T]` at `positions` by the model's `[1, T, vocab]`."""
    return _scores(positions, _predicted(logits, positions, 1.0), token_ids, topk)


def _logprobs(
    model: Any, token_ids: torch.Tensor, cu_seqlens: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions that are predicted, `[P]`, and their log-probs `[P, vocab]`."""
    position_ids, mask, positions = packed_inputs(token_ids, cu_seqlens)
    logits = model(token_ids, position_ids, mask)
    return positions, _predicted(logits, positions, temperature)


def _predicted(logits: torch.Tensor, positions: torch.Tensor, temperature: float) -> torch.Tensor:
    return torch.log_softmax(logits[0, positions - 1].float() / temperature, dim=-1)


def _scores(
    positions: torch.Tensor, logprobs: torch.Tensor, token_ids: torch.Tensor, topk: int
) -> PackedScores:
    top = logprobs.detach().topk(topk, dim=-1)
    sampled = logprobs.detach().gather(1, token_ids[0, positions].unsqueeze(1)).squeeze(1)
    return PackedScores(
        positions=positions.cpu().numpy(),
        logprobs=sampled.cpu().numpy(),
        top=TopLogprobs(top.indices.cpu().numpy(), top.values.cpu().numpy()),
    )
