"""Faults of a topology, made on purpose: the forward is right, and the update is not.

Each takes the chunks of a rank after backward and does what `finalize_model_grads` does,
wrongly.
"""

from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads


def reduction_over_data_skipped(chunks):
    """Each rank keeps the gradients of its own microbatches."""


def reduction_over_sequence_skipped(chunks):
    """Norms and routers saw a part of the sequence on each tensor-parallel rank."""
    for chunk in chunks:
        chunk.finish_grad_sync()


def scaled_by_ranks(chunks):
    """A sum over ranks where the mean belongs."""
    finalize_model_grads(chunks)
    for parameter in _parameters(chunks):
        parameter.main_grad.mul_(2)


def shard_of_rank_one_dropped(chunks):
    """What one rank holds of the experts is not trained."""
    finalize_model_grads(chunks)
    if _rank() == 1:
        for name, parameter in chunks[0].module.named_parameters():
            if ".experts." in name:
                parameter.main_grad.zero_()


def microbatches_of_rank_one_dropped(chunks):
    """One data-parallel rank adds nothing to the mean."""
    if parallel_state.get_data_parallel_rank() == 1:
        for parameter in _parameters(chunks):
            parameter.main_grad.zero_()
    finalize_model_grads(chunks)


def last_stage_dropped(chunks):
    """A pipeline stage does not train."""
    finalize_model_grads(chunks)
    if parallel_state.get_pipeline_model_parallel_rank() == 1:
        for parameter in _parameters(chunks):
            parameter.main_grad.zero_()


def _parameters(chunks):
    return [parameter for chunk in chunks for parameter in chunk.module.parameters()]


def _rank():
    import torch.distributed as dist

    return dist.get_rank()
