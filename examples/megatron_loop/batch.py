"""Padded microbatches of recorded trajectories, as an RL trainer has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from routereplay.client import ModelShape, PackedRoutes, Trajectory, pack_padded, stitch


@dataclass(frozen=True, eq=False)
class Microbatch:
    """Sequences of one length; tensors are `[b, s]`."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    """The token after each; 0 after the last."""
    advantages: torch.Tensor
    """Float32: what the label was worth if the engine sampled it, else 0."""
    routes: PackedRoutes

    @property
    def row_ids(self) -> torch.Tensor:
        """The row of `routes` for each token."""
        return torch.arange(self.input_ids.numel()).view_as(self.input_ids)

    @property
    def inputs(self) -> dict[str, Any]:
        """What a `GPTModel` is called with."""
        length = self.input_ids.shape[1]
        return {
            "input_ids": self.input_ids,
            "position_ids": torch.arange(length).expand_as(self.input_ids),
            # Padding lies behind every sequence, so that causal attention never sees it.
            "attention_mask": torch.ones(1, 1, length, length).triu(1).bool(),
        }

    def logprobs(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the log-prob of each label, `[b, s]` float32, by `logits` `[b, s, vocab]`."""
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        return logprobs.gather(-1, self.labels.unsqueeze(-1)).squeeze(-1)

    def loss(self, logprobs: torch.Tensor) -> torch.Tensor:
        """Return the policy gradient's loss, of log-probs `[b, s]`."""
        return -(logprobs * self.advantages).sum() / self.advantages.count_nonzero()


def microbatches(
    trajectories: Sequence[Trajectory], model: ModelShape, *, size: int
) -> list[Microbatch]:
    """Pack every sequence of the trajectories, `size` to a microbatch, all of one length.

    Pipeline stages send each other tensors of one shape, so all are padded alike.

    Raises:
        MisalignedRoutes, MissingRoutes, InvalidRoutes: naming trajectory, turn, position.
    """
    episodes = [(one, tokens) for one in trajectories for tokens in one.sequences()]
    length = max(len(tokens) for _, tokens in episodes)
    return [
        _padded(episodes[first : first + size], length, model)
        for first in range(0, len(episodes), size)
    ]


def _padded(
    episodes: Sequence[tuple[Trajectory, np.ndarray]], length: int, model: ModelShape
) -> Microbatch:
    tokens = np.zeros((len(episodes), length + 1), np.int64)
    sampled = np.zeros_like(tokens, dtype=bool)
    for row, (trajectory, sequence) in enumerate(episodes):
        tokens[row, : len(sequence)] = sequence
        found = stitch(trajectory, sequence, branches="allow")
        sampled[row, : len(sequence)] = found.sampled
    routes = pack_padded(
        [trajectory for trajectory, _ in episodes],
        tokens[:, :-1],
        lengths=[len(sequence) for _, sequence in episodes],
        loss_mask=sampled[:, :-1],
        branches="allow",
        model=model,
    )
    return Microbatch(
        input_ids=torch.from_numpy(tokens[:, :-1]),
        labels=torch.from_numpy(tokens[:, 1:]),
        # A trainer has an advantage of its own for each episode; here all went well.
        advantages=torch.from_numpy(sampled[:, 1:]).float(),
        routes=routes,
    )
