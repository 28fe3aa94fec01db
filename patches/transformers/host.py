"""`TransformersModel`: what a model of transformers says of its routers and their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from routereplay.patches.replay.chunk import ChunkReplay
from routereplay.patches.replay.errors import ReplayMismatch
from routereplay.patches.replay.microbatch import ModelRouting
from routereplay.patches.replay.rows import RouterRows, check_row_ids
from routereplay.patches.transformers.discovery import FoundRouter
from routereplay.patches.transformers.layer import HookedLayer


@dataclass(frozen=True, slots=True)
class TransformersModel:
    """A `HostChunk` over the routers that were found in a decoder."""

    routers: Sequence[FoundRouter]
    vp_stage: int = 0

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """1-based."""
        return tuple(router.layer_number for router in self.routers)

    @property
    def routing(self) -> ModelRouting:
        """What the routers need of the routes."""
        router = self.routers[0].router
        return ModelRouting(
            tuple(found.layer_idx for found in self.routers), router.top_k, router.num_experts
        )

    @property
    def device(self) -> torch.device:
        """Where the routers are now."""
        device: torch.device = self.routers[0].router.weight.device
        return device

    def place(self, row_ids: torch.Tensor) -> RouterRows:
        """Return the rows as a block of transformers flattens `[b, s]`: as they are."""
        check_row_ids(row_ids)
        batch, length = row_ids.shape
        return RouterRows(row_ids.reshape(-1).long(), (batch, length), batch_first=True)


class DecoderHook:
    """Looks at what the decoder is called with."""

    def __init__(self, chunk: ChunkReplay[HookedLayer]) -> None:
        self._chunk = chunk

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise `ReplayMismatch` unless the input has the shape of the microbatch's row ids.

        A forward pre-hook. Left at that shape, rows cannot be in another order.
        """
        self._chunk.enter_decoder(decoder, args)
        microbatch = self._chunk.current
        embeds = kwargs.get("inputs_embeds")
        given = embeds if embeds is not None else kwargs.get("input_ids", args[0] if args else None)
        if self._chunk.bypasses or microbatch is None or given is None:
            return
        found = tuple(given.shape[:2])
        if found != microbatch.input_shape:
            msg = (
                f"the model is called with {found} tokens and row_ids have the shape "
                f"{microbatch.input_shape}; row_ids must be shaped like this rank's input_ids"
            )
            raise ReplayMismatch(msg, found=list(found), expected=list(microbatch.input_shape))
