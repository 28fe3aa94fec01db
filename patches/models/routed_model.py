"""`RoutedModel`: what routes, recorder and trainer must agree on about one model."""

from __future__ import annotations

from dataclasses import dataclass

from routereplay.client.packed import ModelShape
from routereplay.wire.routes import DtypeName, dtype_for


@dataclass(frozen=True, slots=True)
class RoutedModel:
    """The routed layers of one mixture of experts; layers are decoder layers, 0-based.

    `routed_model` reads it from a Hugging Face config. A model without one can be
    described by hand.

    Raises:
        ValueError: the fields contradict each other.
    """

    model_type: str
    """Of the Hugging Face config; names the model in errors."""

    num_layers: int
    """Decoder layers, dense ones included, those of multi-token prediction not."""

    moe_layers: tuple[int, ...]
    """The layers that route, rising. All other planes of the routes are zeros."""

    num_experts: int
    """Routed experts of a layer; shared experts are not routed to and do not count."""

    topk: int

    score_function: str | None = None
    """`softmax` or `sigmoid`, as in `moe_router_score_function`; None is not checked."""

    renormalizes: bool | None = None
    """Whether a softmax's weights of the chosen experts sum to one; None is not checked."""

    scaling_factor: float | None = None
    """What the weights are multiplied by in the end; None is not checked."""

    def __post_init__(self) -> None:
        rising = list(self.moe_layers) == sorted(set(self.moe_layers))
        inside = all(0 <= layer_idx < self.num_layers for layer_idx in self.moe_layers)
        if not (self.moe_layers and rising and inside):
            msg = (
                f"{self.model_type}: moe_layers {self.moe_layers} must be rising layers in "
                f"0:{self.num_layers}, at least one"
            )
            raise ValueError(msg)
        if not 1 <= self.topk <= self.num_experts:
            msg = f"{self.model_type}: topk {self.topk} of {self.num_experts} experts"
            raise ValueError(msg)

    @property
    def shape(self) -> ModelShape:
        """What `pack_thd`, `pack_padded` and `ReplayBundle` check routes against."""
        return ModelShape(self.num_layers, self.topk, self.num_experts)

    @property
    def dtype(self) -> DtypeName:
        """The dtype in which vLLM records the ids."""
        return dtype_for(self.num_experts)

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """The layers without a router."""
        moe = set(self.moe_layers)
        return tuple(layer_idx for layer_idx in range(self.num_layers) if layer_idx not in moe)
