"""The same step in Megatron-Core's own schedule: pipeline stages, interleaved or not.

What replay adds are the two lines with `replay`. Each stage fetches the routes of its own
layers and begins the microbatches that it runs; nothing of them is sent between stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_loop.batch import Microbatch
from routereplay.patches.megatron import RouterReplay


def train_step(
    chunks: Sequence[Any], replay: RouterReplay, optimizer: Any, microbatches: Sequence[Microbatch]
) -> list[torch.Tensor]:
    """Train one step; return the log-prob of each label `[b, s]`, on the last stage.

    Args:
        chunks: this stage's, each inside Megatron-Core's `DistributedDataParallel`.
        optimizer: Megatron-Core's.
    """
    logprobs: list[torch.Tensor] = []

    def loss_func(microbatch: Microbatch, logits: torch.Tensor) -> tuple[torch.Tensor, Any]:
        found = microbatch.logprobs(logits)
        logprobs.append(found.detach())
        return microbatch.loss(found), {}

    def forward_step(batches: Iterator[Microbatch], chunk: Any) -> tuple[torch.Tensor, Any]:
        microbatch = next(batches)
        vp_stage = chunks.index(chunk)
        replay.begin_microbatch(microbatch.routes, microbatch.row_ids, vp_stage=vp_stage)
        return chunk(**microbatch.inputs), partial(loss_func, microbatch)

    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    size, length = microbatches[0].input_ids.shape
    with replay.step():
        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter(microbatches) for _ in chunks],
            model=list(chunks),
            num_microbatches=len(microbatches),
            seq_length=length,
            micro_batch_size=size,
            forward_only=False,
        )
    optimizer.step()
    return logprobs
