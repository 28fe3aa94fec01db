"""`PackedRoutes`: a batch of routes in the trainer's own layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class ModelShape(NamedTuple):
    """What routes and model must agree on."""

    num_layers: int
    """Decoder layers, dense ones included."""
    topk: int
    num_experts: int


@dataclass(frozen=True, eq=False, slots=True)
class PackedRoutes:
    """Routes of one packed row (THD) or one padded batch, ready for replay.

    Row i belongs to flat token i of the batch as the trainer lays it out: position i of
    a packed row, or `sequence * max_len + position` of a padded batch. A row is exactly
    one of: recorded (neither mask set), live, padding.
    """

    experts: np.ndarray
    """`[tokens, layers, topk]`, uint8 up to 256 experts else uint16, C-contiguous.

    Live and padding rows hold distinct, balanced ids too, so that nothing downstream
    ever meets a row that a dispatcher would reject."""

    live: np.ndarray
    """`[tokens]` bool: a real token without a route; the router decides."""

    padding: np.ndarray
    """`[tokens]` bool: no real token; its experts are distinct and balanced over all experts."""

    num_experts: int

    layer_start: int = 0
    """0-based decoder layer of plane 0."""

    missing: np.ndarray | None = None
    """`[tokens]` bool: of the live rows, those whose route was lost. The last token of a
    sequence never has one and is not missing. None: not known."""

    policy: np.ndarray | None = None
    """`[tokens]` int32: which of `policy_versions` routed a recorded row; -1: not known."""

    policy_versions: tuple[str, ...] = ()

    in_order: bool = True
    """Whether recorded rows hold their ids in vLLM's order. Replay does not need it; sums over
    the experts of a token may differ in their last bit."""

    @property
    def num_tokens(self) -> int:
        """Rows of the batch, padding included."""
        return len(self.experts)
