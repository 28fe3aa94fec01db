"""What an engine said of the tokens that it sampled. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from routereplay.parity.metrics import TopLogprobs


@dataclass(frozen=True, eq=False, slots=True)
class SampledTokens:
    """What the engine said of the tokens that it sampled."""

    positions: np.ndarray
    """`[N]` flat index of each in the packed row."""
    logprobs: np.ndarray
    """`[N]` log-prob of the sampled token."""
    top: TopLogprobs
    """`[N, M]` the likeliest tokens there."""

    @classmethod
    def nothing(cls, positions: np.ndarray) -> SampledTokens:
        """Return tokens of which the engine has said nothing yet."""
        none = np.zeros((len(positions), 0))
        return cls(positions, none[:, 0:0].sum(1), TopLogprobs(none.astype(np.int64), none))
