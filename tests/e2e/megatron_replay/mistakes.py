"""Row ids of a trainer that gets its layout wrong: valid rows, valid shapes, other tokens."""

import torch


def other_context_rank(batch, rank):
    size = rank.layout.size("context_parallel_size")
    return batch.cut(batch.row_ids, rank.layout, (rank.context_rank + 1) % size)


def zigzag_of_the_whole_row(batch, rank):
    """Not of each sequence of the packed row, which is what the tokens went through."""
    size = rank.layout.size("context_parallel_size")
    pieces = batch.row_ids.chunk(2 * size, dim=1)
    return torch.cat([pieces[rank.context_rank], pieces[-1 - rank.context_rank]], dim=1)


def sequence_major(batch, _rank):
    """The batch's rows where position-major ones belong."""
    batch_size, length = batch.tokens.shape
    return torch.arange(batch_size * length).view(length, batch_size).t()
