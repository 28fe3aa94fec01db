"""Ask a router of the model's own class, before training, whether its recipe is right.

A release or a fork of transformers that weighs experts otherwise is caught here, instead of
training on other weights in silence.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from routereplay.patches.transformers.weights import Weigh

_ROWS = 16


def probe_router(router: nn.Module, config: Any, weigh: Weigh) -> str | None:
    """Return why `weigh` does not make the weights that this class of router makes, or None.

    A small router is built anew on the CPU: that of the model may be sharded, on another
    device, or not loaded yet.
    """
    kind = next(
        (cls for cls in type(router).__mro__ if not cls.__name__.startswith("FSDP")), type(router)
    )
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            probe = kind(config).float()
            for tensor in (*probe.parameters(), *probe.buffers()):
                tensor.normal_()
            hidden = torch.randn(1, _ROWS, config.hidden_size)
            logits, expected, ids = probe(hidden.view(_ROWS, -1), *_extra(probe))
            found = weigh(probe, logits, ids.long())
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        return f"{kind.__name__} raised {type(error).__name__} when probed: {error}"
    if found.dtype != expected.dtype or not torch.allclose(found, expected, rtol=1e-5, atol=1e-7):
        return (
            f"{kind.__name__} weighs its experts otherwise than {weigh.__name__}, the recipe of "
            "this model type; replay would train other weights. Use a routereplay that knows "
            "this transformers"
        )
    return None


def _extra(probe: nn.Module) -> list[torch.Tensor]:
    """Return what the router's forward takes beyond hidden states: MiniMax-M2's bias."""
    parameters = list(inspect.signature(probe.forward).parameters)[1:]
    return [torch.randn(int(probe.num_experts)) for _ in parameters]
