"""`MegatronChunk`: what a chunk of Megatron-Core says of its routers and their rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from routereplay.patches.megatron.discovery import FoundChunk
from routereplay.patches.megatron.placement import router_rows
from routereplay.patches.replay.microbatch import ModelRouting
from routereplay.patches.replay.rows import RouterRows


@dataclass(frozen=True, slots=True)
class MegatronChunk:
    """A `HostChunk` over the routers that were found in a decoder."""

    found: FoundChunk

    @property
    def vp_stage(self) -> int:
        """Virtual pipeline stage."""
        return self.found.vp_stage

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """1-based, over the whole model."""
        return tuple(router.layer_number for router in self.found.routers)

    @property
    def routing(self) -> ModelRouting:
        """What the routers need of the routes."""
        config = self.found.routers[0].router.config
        return ModelRouting(
            layer_idxs=tuple(router.layer_idx for router in self.found.routers),
            topk=config.moe_router_topk,
            num_experts=config.num_moe_experts,
        )

    @property
    def device(self) -> torch.device:
        """Where the routers are now."""
        device: torch.device = self.found.routers[0].router.weight.device
        return device

    def place(self, row_ids: torch.Tensor) -> RouterRows:
        """Transpose and scatter as the embedding does; see `placement`."""
        router = self.found.routers[0].router
        group = router.tp_group if router.config.sequence_parallel else None
        if group is None:
            return router_rows(row_ids)
        return router_rows(row_ids, sp_size=group.size(), sp_rank=group.rank())
