"""A policy-gradient step of a plain loop over a model of Megatron-Core.

What replay adds are the two lines with `replay`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_loop.batch import Microbatch
from routereplay.patches.megatron import RouterReplay


def train_step(
    model: torch.nn.Module,
    replay: RouterReplay,
    optimizer: torch.optim.Optimizer,
    microbatches: Sequence[Microbatch],
) -> list[torch.Tensor]:
    """Train one step; return the log-prob of each label, `[b, s]` for each microbatch."""
    optimizer.zero_grad()
    logprobs = []
    with replay.step():
        for microbatch in microbatches:
            replay.begin_microbatch(microbatch.routes, microbatch.row_ids)
            found = microbatch.logprobs(model(**microbatch.inputs))
            (microbatch.loss(found) / len(microbatches)).backward()
            logprobs.append(found.detach())
    optimizer.step()
    return logprobs
