"""`MegatronLayer`: what one router of Megatron-Core asks for its experts.

Megatron-Core >= 0.16 keeps a `router_replay` on each router and calls nothing of it but
`get_replay_topk` (`moe_utils.topk_routing_with_score_function`). Ours stands there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from routereplay.patches.replay.errors import ReplayMismatch, ReplayStateError
from routereplay.patches.replay.layer import LayerReplay

ComputeTopk = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class MegatronLayer(LayerReplay):
    """Replays one decoder layer's recorded experts in forward and in recompute."""

    # Traced, the state of a step would be burnt into the graph: wrong experts or a
    # recompilation for every microbatch.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def get_replay_topk(
        self,
        scores: torch.Tensor,
        topk: int,
        num_groups: int | None = None,
        group_topk: int | None = None,
        default_compute_topk: ComputeTopk | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores of the experts to execute, and their ids `[rows, topk]` int64.

        Called by Megatron-Core. `scores` is `[rows, experts]`; the returned scores are
        gathered from it, so gradients reach the router that lives.

        Raises:
            ReplayStateError: no microbatch is open, or it was executed already.
            ReplayMismatch: the rows are not the microbatch's.
        """

        def live() -> tuple[torch.Tensor, torch.Tensor]:
            if default_compute_topk is None:
                msg = f"{self.where()}: Megatron-Core handed over no top-k for live routing"
                raise ReplayStateError(msg)
            return default_compute_topk(scores, topk, num_groups, group_topk)

        rows, num_experts = scores.shape
        ids = self.execute(rows, topk, num_experts, lambda: live()[1])
        return live() if ids is None else (scores.gather(1, ids), ids)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def check_input(self, _router: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise `ReplayMismatch` unless the hidden states have the microbatch's `(s, b)`.

        A forward pre-hook. The same number of rows in another order (packed sequences
        that a layer folds back to a batch, chunks of an MLP) would otherwise pass.
        """
        hidden = args[0] if args else kwargs.get("input")
        if self.is_bypassed or not isinstance(hidden, torch.Tensor):
            return
        expected = self.expected_input()
        if expected is not None and tuple(hidden.shape[:-1]) != expected:
            msg = (
                f"{self.where()}: hidden states of shape {tuple(hidden.shape)} where row_ids "
                f"give (s, b) = {expected}; row_ids must be shaped like this rank's input_ids, "
                "before transpose and sequence-parallel scatter"
            )
            raise ReplayMismatch(msg, found=list(hidden.shape), expected=list(expected))
