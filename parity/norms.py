"""Norms that Megatron-Core's local layers lack."""

from __future__ import annotations

from typing import Any

import torch

from routereplay.parity.hf_config import DecoderShape


class SequenceParallelNorm(torch.nn.RMSNorm):
    """Megatron-Core's local norm refuses sequence parallelism; this one marks its weight."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_fields: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel


class ZeroCentredNorm(torch.nn.Module):
    """RMSNorm that multiplies by `1 + weight`, in float32 whatever comes in.

    Adding the 1 to the weights of a checkpoint would round them in bfloat16.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_fields: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel
        self._eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return `hidden` `[..., hidden_size]`, normalised, in its dtype."""
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps)
        return (wide * scale * (1.0 + self.weight.float())).type_as(hidden)


def norm_of(shape: DecoderShape, config: Any) -> type[torch.nn.Module] | None:
    """Return the norm that must take the place of Megatron-Core's local one, if one must."""
    if shape.family.linear_attention:
        return ZeroCentredNorm
    return SequenceParallelNorm if config.sequence_parallel else None
