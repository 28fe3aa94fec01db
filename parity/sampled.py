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
