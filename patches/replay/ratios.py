"""How far the trained policy is from the one that sampled, by log-probs of the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_MAX_SAMPLES = 2**16
"""Ratios of a rank that quantiles are taken of; more are thinned evenly, sums are of all."""

QUANTILES = {"ratio_p01": 0.01, "ratio_p50": 0.5, "ratio_p99": 0.99}


class RatioMeter:
    """Collects log-probs on their device without waiting for it; `take` waits once."""

    def __init__(self) -> None:
        self._kept: list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]] = []
        """Log-probs by which model, unless they are subtracted already, and mask."""

    def add(
        self, trained: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor | None = None
    ) -> None:
        """Add the log-probs of a microbatch; see `ReplayWatch.logprobs`.

        Raises:
            ValueError: the shapes differ.
        """
        shapes = [tuple(t.shape) for t in (trained, sampled, mask) if t is not None]
        if len(set(shapes)) > 1:
            msg = f"trained and sampled log-probs and mask have shapes {shapes}; expected one shape"
            raise ValueError(msg)
        trained, sampled = trained.detach().reshape(-1), sampled.detach().reshape(-1)
        mask = None if mask is None else mask.detach().reshape(-1)
        if trained.device == sampled.device:
            self._kept.append((trained.float() - sampled.float(), None, mask))
        else:  # A copy between them would be waited for.
            self._kept.append((trained, sampled, mask))

    def take(self) -> LogRatios:
        """Return what was collected and begin anew."""
        kept, self._kept = self._kept, []
        parts = []
        for trained, sampled, mask in kept:
            on_host = trained.cpu().float()
            difference = on_host if sampled is None else on_host - sampled.cpu().float()
            parts.append(difference if mask is None else difference[mask.cpu().bool()])
        ratios = torch.cat(parts).numpy() if parts else np.zeros(0, np.float32)
        return LogRatios.of(ratios)


@dataclass(frozen=True)
class LogRatios:
    """Log ratios (trained minus sampled log-prob) of one rank, small enough to be gathered."""

    tokens: int
    absolute: float
    """Sum of the absolute values."""
    divergence: float
    """Sum of `exp(x) - 1 - x`: an estimate of KL(sampled, trained), never negative."""
    lowest: float
    highest: float
    samples: np.ndarray
    """`[n]` float32, some or all of them."""

    @classmethod
    def of(cls, ratios: np.ndarray) -> LogRatios:
        """Sum up log ratios `[tokens]`."""
        if not ratios.size:
            return cls(0, 0.0, 0.0, np.inf, -np.inf, ratios)
        wide = ratios.astype(np.float64)
        with np.errstate(over="ignore"):
            divergence = float((np.exp(wide) - 1 - wide).sum())
        return cls(
            tokens=ratios.size,
            absolute=float(np.abs(wide).sum()),
            divergence=divergence,
            lowest=float(ratios.min()),
            highest=float(ratios.max()),
            samples=ratios[:: -(-ratios.size // _MAX_SAMPLES)],
        )


def ratio_numbers(ranks: Sequence[LogRatios]) -> dict[str, float]:
    """Return quantiles, extremes and means over all ranks; empty without a token."""
    tokens = sum(ratios.tokens for ratios in ranks)
    if not tokens:
        return {}
    # A rank that was thinned more stands for more tokens.
    values = np.concatenate([ratios.samples for ratios in ranks]).astype(np.float64)
    weights = np.concatenate(
        [np.full(len(r.samples), r.tokens / len(r.samples)) for r in ranks if r.tokens]
    )
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / tokens
    last = len(values) - 1
    with np.errstate(over="ignore"):
        numbers = {
            name: float(np.exp(values[order[min(int(np.searchsorted(reached, share)), last)]]))
            for name, share in QUANTILES.items()
        }
        numbers["ratio_min"] = float(np.exp(min(ratios.lowest for ratios in ranks)))
        numbers["ratio_max"] = float(np.exp(max(ratios.highest for ratios in ranks)))
    numbers["logprob_error"] = sum(ratios.absolute for ratios in ranks) / tokens
    numbers["logprob_kl"] = sum(ratios.divergence for ratios in ranks) / tokens
    numbers["logprob_tokens"] = float(tokens)
    return numbers
