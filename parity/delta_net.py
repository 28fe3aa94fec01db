"""Megatron-Core's gated delta net where flash-linear-attention is not installed.

Megatron-Core computes the delta rule in torch in `deterministic_mode`, and takes one more
function of that package, an L2 norm, and a look at whether it is there.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch


@functools.cache
def gated_delta_net() -> tuple[type[Any], type[Any]]:
    """Return Megatron-Core's `GatedDeltaNet`, able to be built, and its submodules' class."""
    from megatron.core.ssm import gated_delta_net as package

    # A module up to 0.18, a package since.
    module: Any = sys.modules.get(f"{package.__name__}.common", package)
    if not module.HAVE_FLA:
        module.HAVE_FLA = True
        module.l2norm = _l2norm
    return _eager(package.GatedDeltaNet), package.GatedDeltaNetSubmodules


def _eager(net: type[Any]) -> type[Any]:
    """Return `net` without compilation, which needs a C++ compiler on a CPU."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return net.forward(self, *args, **kwargs)

    return type(net.__name__, (net,), {"forward": forward})


def _l2norm(x: torch.Tensor, dim: int = -1, eps: float = 1e-6) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().sum(dim, keepdim=True) + eps)).type_as(x)
