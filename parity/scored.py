"""What one engine said in one pass: log-probs, likeliest tokens, executed experts. numpy only.

Shape legend: N tokens of all trajectories one after the other, L layers, K topk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from routereplay.parity.metrics import TopLogprobs
from routereplay.parity.sampled import SampledTokens


@dataclass(eq=False, slots=True)
class Scored:
    """Log-probs and routes of tokens, where there are any."""

    logprobs: np.ndarray
    """`[N]` of each token given those before it; NaN where nothing was said."""
    top: TopLogprobs
    """`[N, M]`."""
    experts: np.ndarray
    """`[N, L, K]` expert ids; dense layers zero."""
    routed: np.ndarray
    """`[N]` bool: the token has a row of experts."""

    @classmethod
    def empty(cls, tokens: int, layers: int, topk: int, top: int = 20) -> Scored:
        """Return the scores of nothing."""
        return cls(
            np.full(tokens, np.nan),
            TopLogprobs(np.zeros((tokens, top), np.int64), np.zeros((tokens, top))),
            np.zeros((tokens, layers, topk), np.int64),
            np.zeros(tokens, bool),
        )

    @classmethod
    def of_engine(
        cls,
        sampled: Sequence[SampledTokens],
        routes: Sequence[tuple[np.ndarray, np.ndarray]],
    ) -> Scored:
        """Return what vLLM said of trajectories.

        Args:
            sampled: of each, log-probs by its own positions.
            routes: of each, experts `[tokens, L, K]` and which rows were recorded `[tokens]`.
        """
        experts = np.concatenate([rows for rows, _ in routes]).astype(np.int64)
        lengths = [len(rows) for rows, _ in routes]
        tokens, layers, topk = experts.shape
        scored = cls.empty(tokens, layers, topk, sampled[0].top.ids.shape[1])
        scored.experts = experts
        scored.routed = np.concatenate([recorded for _, recorded in routes])
        for said, start in zip(sampled, np.cumsum([0, *lengths]), strict=False):
            where = start + said.positions
            scored.logprobs[where] = said.logprobs
            scored.top.ids[where] = said.top.ids
            scored.top.logprobs[where] = said.top.logprobs
        return scored

    def between(self, start: int, stop: int) -> Scored:
        """Return the scores of the tokens `start` to `stop` alone, as views."""
        span = slice(start, stop)
        return Scored(
            self.logprobs[span],
            TopLogprobs(self.top.ids[span], self.top.logprobs[span]),
            self.experts[span],
            self.routed[span],
        )
