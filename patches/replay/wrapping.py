"""Find a model inside what trainers wrap around it."""

from __future__ import annotations

from torch import nn

_WRAPPERS = ("module", "_orig_mod")
"""Where DDP, Float16Module and FSDP keep the model, and where torch.compile does."""


def unwrap(module: nn.Module) -> nn.Module:
    """Return the model inside DDP, Float16Module, FSDP and torch.compile."""
    for name in _WRAPPERS:
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module):
            return unwrap(inner)
    return module
