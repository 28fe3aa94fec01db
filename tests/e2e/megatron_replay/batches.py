"""Microbatches of a trainer, padded or packed, and how it cuts them for context parallelism.

Shape legend: B sequences of a padded batch (1 if packed), S positions, s those of one rank.
"""

from dataclasses import dataclass

import bench
import numpy as np
import torch

from routereplay.client import pack_thd
from routereplay.client.packed import PackedRoutes
from routereplay.patches.megatron import context_parallel_rows_padded, context_parallel_rows_thd
from routereplay.wire import RecordManifest, RoutedExperts, digest

CU_SEQLENS = (0, 5, 12, 16)
CU_SEQLENS_PADDED = (0, 8, 16, 24)


@dataclass(frozen=True)
class Batch:
    """One microbatch before it is cut for context parallelism; tensors are `[B, S]`."""

    tokens: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    """1 where the loss counts, 0 on padding."""
    routes: PackedRoutes
    bounds: tuple[int, ...]
    """Along S, the segments that context parallelism cuts one by one."""
    packed: bool

    @property
    def row_ids(self):
        return torch.arange(self.tokens.numel()).view(self.tokens.shape)

    def cut(self, values_BS, layout, rank):
        """Return this context rank's part `[B, s]`, as the trainer cuts everything it has."""
        size = layout.size("context_parallel_size")
        if size == 1:
            return values_BS
        if layout.context == "contiguous":
            return values_BS.chunk(size, dim=1)[rank]
        parts = []
        for start, stop in zip(self.bounds[:-1], self.bounds[1:], strict=True):
            piece = (stop - start) // (2 * size)
            front, back = start + rank * piece, stop - (rank + 1) * piece
            parts += [values_BS[:, front : front + piece], values_BS[:, back : back + piece]]
        return torch.cat(parts, dim=1)

    def helper_rows(self, size, rank):
        """Return the row ids that the package's own formulas give for the zigzag."""
        if self.packed:
            bounds = torch.tensor(self.bounds)
            return context_parallel_rows_thd(bounds, cp_size=size, cp_rank=rank)
        return context_parallel_rows_padded(*self.tokens.shape, cp_size=size, cp_rank=rank)


def make_batch(seed, *, packed):
    return _packed(seed) if packed else _padded(seed)


def _padded(seed):
    shape = (bench.BATCH, bench.LENGTH)
    tokens, labels = _tokens(seed, shape)
    recorded = bench.random_routes(seed)
    live = np.zeros(shape, bool)
    live[:, -1] = True  # The last token of a rollout has no route.
    routes = bench.pack(recorded.experts, live=live.reshape(-1))
    return Batch(tokens, labels, torch.ones(shape), routes, (0, bench.LENGTH), packed=False)


def _packed(seed):
    tokens, labels = _tokens(seed, (1, CU_SEQLENS_PADDED[-1]))
    lengths = np.diff(CU_SEQLENS)
    experts = iter(np.split(bench.random_routes(seed).experts, CU_SEQLENS[1:]))
    weights = torch.zeros(tokens.shape)
    episodes = []
    for start, length in zip(CU_SEQLENS_PADDED, lengths, strict=False):
        sequence = tokens[0, start : start + length].numpy().astype(np.int32)
        episodes.append(recorded_request(sequence, next(experts)[: length - 1]))
        weights[0, start : start + length] = 1.0
    routes = pack_thd(
        episodes,
        tokens[0].numpy(),
        cu_seqlens=np.array(CU_SEQLENS),
        cu_seqlens_padded=np.array(CU_SEQLENS_PADDED),
    )
    return Batch(tokens, labels, weights, routes, CU_SEQLENS_PADDED, packed=True)


def recorded_request(sequence, experts, name="chatcmpl-a", policy_versions=()):
    """Return the record of one request: `experts` for every token but the last."""
    manifest = RecordManifest(
        request_id=name,
        choice=0,
        num_layers=bench.LAYERS,
        topk=bench.TOPK,
        num_experts=bench.EXPERTS,
        dtype="uint8",
        prompt_len=2,
        completion_len=len(sequence) - 2,
        rows=len(experts),
        finish_reason="stop",
        chunks=(),
        token_digest=digest(np.ascontiguousarray(sequence).data),
        policy_versions=policy_versions,
    )
    return RoutedExperts(np.ascontiguousarray(experts), manifest, sequence)


def _tokens(seed, shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, bench.VOCAB, (2, *shape), generator=generator)
