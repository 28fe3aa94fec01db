"""A policy-gradient step of a plain transformers loop, as TRL's trainers have it inside.

Padded batches, a loss over sampled tokens, microbatches that accumulate. What replay adds
are the four lines with `replay`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from routereplay.client import Trajectory, pack_padded
from routereplay.patches.transformers import RouterReplay, routed_model


@dataclass(frozen=True)
class Sampled:
    """One episode: its tokens, which of them were sampled, and what that was worth."""

    token_ids: np.ndarray
    """`[tokens]` integers."""
    sampled: np.ndarray
    """`[tokens]` bool."""
    advantage: float = 1.0


def train_step(
    model: torch.nn.Module,
    replay: RouterReplay,
    optimizer: torch.optim.Optimizer,
    episodes: Sequence[Sampled],
    trajectories: Sequence[Trajectory],
    *,
    microbatch_size: int = 2,
) -> list[np.ndarray]:
    """Train on the episodes; return the log-prob of each token, `[tokens]` float32.

    The first token of an episode has none (0.0): nothing predicts it.
    """
    optimizer.zero_grad()
    logprobs: list[np.ndarray] = []
    total = sum(int(episode.sampled.sum()) for episode in episodes)
    with replay.step():
        for first in range(0, len(episodes), microbatch_size):
            chosen = slice(first, first + microbatch_size)
            batch = episodes[chosen]
            lengths = [len(episode.token_ids) for episode in batch]
            input_ids = _pad([episode.token_ids for episode in batch])
            mask = _pad([episode.sampled for episode in batch]).bool()
            packed = pack_padded(
                trajectories[chosen],
                input_ids.numpy(),
                lengths=lengths,
                loss_mask=mask.numpy(),
                model=routed_model(model.config).shape,
            )
            replay.begin_microbatch(packed, torch.arange(input_ids.numel()).view_as(input_ids))
            attends = _pad([np.ones(length, np.int64) for length in lengths])
            logits = model(input_ids, attention_mask=attends, use_cache=False).logits.float()
            logp = torch.log_softmax(logits[:, :-1], -1)
            logp = logp.gather(-1, input_ids[:, 1:, None]).squeeze(-1)
            worth = torch.tensor([episode.advantage for episode in batch])[:, None]
            (-(logp * worth)[mask[:, 1:]].sum() / total).backward()
            logprobs += [
                np.concatenate([[0.0], row[: length - 1].detach().numpy()], dtype=np.float32)
                for row, length in zip(logp, lengths, strict=True)
            ]
    optimizer.step()
    return logprobs


def _pad(rows: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(np.asarray(row, np.int64)) for row in rows], batch_first=True
    )
