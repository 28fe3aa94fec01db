"""How far the ranks of a layout are from one process, and how far is too far."""

from typing import NamedTuple


class Distance(NamedTuple):
    """The largest differences over all ranks, microbatches and parameters."""

    outputs: float
    """Losses of single tokens."""
    losses: float
    gradients: float
    """Over the largest entry of the parameter's whole gradient."""
    norm: float
    """Of all gradients together, over itself."""
    updates: float
    """As gradients; what the rounding of the weights explains is left out."""

    def over(self, limit):
        """Return the names of what is over `limit`."""
        return [name for name, own in self._asdict().items() if own > getattr(limit, name)]


NEAR = Distance(outputs=3e-6, losses=2e-6, gradients=3e-6, norm=1e-6, updates=1e-5)
"""Sums in another order, in float32."""
SAME = NEAR._replace(outputs=0.0, losses=0.0, gradients=0.0)
"""Bit for bit; the norm is summed over pipeline stages and rounds."""


def limit_of(layout):
    return SAME if layout.bitwise else NEAR


def distance_of(ranks):
    """Return the distance of a layout from the facts of its ranks."""
    reference, norm = ranks[0]["reference_losses"], ranks[0]["reference_norm"]
    losses = losses_of(ranks)
    assert losses.keys() == reference.keys()
    return Distance(
        outputs=max(rank["output_difference"] for rank in ranks),
        losses=max(abs(losses[seed] - loss) for seed, loss in reference.items()),
        gradients=max(max(rank["differences"].values()) for rank in ranks),
        norm=max(abs(rank["norm"] / norm - 1) for rank in ranks),
        updates=max(max(rank["updates"].values()) for rank in ranks),
    )


def losses_of(ranks):
    """Return the loss of each microbatch; each context rank holds a share of it."""
    shares = {}
    for rank in ranks:
        for seed, loss in rank["losses"].items():
            shares.setdefault(seed, {})[rank["context_rank"]] = loss
    return {seed: sum(by_rank.values()) for seed, by_rank in shares.items()}
