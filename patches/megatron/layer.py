"""`LayerReplay`: what one router asks for its experts.

Megatron-Core >= 0.16 keeps a `router_replay` on each router and calls nothing of it but
`get_replay_topk` (`moe_utils.topk_routing_with_score_function`). Ours stands there.

Forward and recompute are told apart exactly: activation recompute runs inside an
autograd backward and nothing else of a router does. A FIFO for each router then gives
the microbatch, because a model chunk runs its backwards in the order of its forwards,
in every schedule of Megatron-Core. Shared between chunks it would not be right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch

from routereplay.patches.megatron.errors import ReplayMismatch, ReplayStateError

if TYPE_CHECKING:
    from routereplay.patches.megatron.chunk import ChunkReplay
    from routereplay.patches.megatron.staging import Microbatch

ComputeTopk = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class _Pending(NamedTuple):
    """A checkpointed call that backward will repeat, and the ids that it executed."""

    ids_TK: torch.Tensor
    input_shape: tuple[int, int]
    buffers: Microbatch | None
    """Whose buffers `ids_TK` lies in; None if it is a tensor of its own."""


def in_backward() -> bool:
    """Whether autograd is running a backward on this thread: the router is recomputed.

    `torch.utils.checkpoint` tells its own recompute by the same id.
    """
    return torch._C._current_graph_task_id() != -1


class LayerReplay:
    """Replays one decoder layer's recorded experts in forward and in recompute."""

    def __init__(self, chunk: ChunkReplay, slot: int, layer_number: int) -> None:
        self.layer_number = layer_number
        self.calls = 0
        self.recomputes = 0
        self._chunk = chunk
        self._slot = slot
        self._pending: deque[_Pending] = deque()

    @property
    def pending(self) -> int:
        """Checkpointed calls whose recompute has not come."""
        return len(self._pending)

    def clear(self) -> None:
        """Forget the step."""
        self.calls = 0
        self.recomputes = 0
        self._pending.clear()

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
                msg = f"{self._where()}: Megatron-Core handed over no top-k for live routing"
                raise ReplayStateError(msg)
            return default_compute_topk(scores, topk, num_groups, group_topk)

        recompute = in_backward()
        if self._chunk.bypasses:
            self._check_bypass(recompute)
            return live()
        ids = self._recompute() if recompute else self._forward(lambda: live()[1], scores, topk)
        if ids.shape != (scores.shape[0], topk):
            self._raise_rows(tuple(ids.shape), (scores.shape[0], topk))
        ids = ids.long()
        return scores.gather(1, ids), ids

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def check_input(self, _router: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise `ReplayMismatch` unless the hidden states have the microbatch's `(s, b)`.

        A forward pre-hook. The same number of rows in another order (packed sequences
        that a layer folds back to a batch, chunks of an MLP) would otherwise pass.
        """
        hidden = args[0] if args else kwargs.get("input")
        if self._chunk.bypasses or not isinstance(hidden, torch.Tensor):
            return
        if in_backward():
            expected = self._pending[0].input_shape if self._pending else None
        else:
            expected = self._chunk.current.input_shape if self._chunk.current else None
        if expected is not None and tuple(hidden.shape[:-1]) != expected:
            msg = (
                f"{self._where()}: hidden states of shape {tuple(hidden.shape)} where row_ids "
                f"give (s, b) = {expected}; row_ids must be shaped like this rank's input_ids, "
                "before transpose and sequence-parallel scatter"
            )
            raise ReplayMismatch(msg, found=list(hidden.shape), expected=list(expected))

    def _forward(
        self, live_ids: Callable[[], torch.Tensor], scores: torch.Tensor, topk: int
    ) -> torch.Tensor:
        microbatch = self._chunk.current
        if microbatch is None:
            msg = (
                f"{self._where()}: the router was called with no open microbatch; call "
                "begin_microbatch() in forward_step, inside step(), or run passes that must "
                "not replay inside bypass()"
            )
            raise ReplayStateError(msg)
        self.calls += 1
        if self.calls != self._chunk.opened:
            msg = (
                f"{self._where()}: router call {self.calls} of this step with "
                f"{self._chunk.opened} microbatches begun; each microbatch calls each router "
                "once, and begin_microbatch() comes before each forward"
            )
            raise ReplayStateError(msg, calls=self.calls, microbatches=self._chunk.opened)
        microbatch.wait()
        ids = microbatch.ids_LTK[self._slot]
        if ids.shape != (scores.shape[0], topk):
            self._raise_rows(tuple(ids.shape), (scores.shape[0], topk))
        compared = self._chunk.canary.wants(self.layer_number)
        chosen = live_ids() if microbatch.has_live or compared else None
        if chosen is not None and compared:
            self._chunk.canary.compare(
                self.layer_number, self._slot, chosen, microbatch, scores.shape[1]
            )
        buffers: Microbatch | None = microbatch
        if chosen is not None and microbatch.has_live:
            # The router's own choice is kept for recompute: on a near-tie a second
            # forward may choose otherwise.
            ids = torch.where(microbatch.live_T.unsqueeze(1), chosen.to(ids.dtype), ids)
            buffers = None
        if self._chunk.trains and not torch.is_grad_enabled():
            self._pending.append(_Pending(ids, microbatch.input_shape, buffers))
            if buffers is not None:
                buffers.keep()
        wide = ids.long()
        microbatch.read()
        return wide

    def _recompute(self) -> torch.Tensor:
        if not self._pending:
            msg = (
                f"{self._where()}: recomputed in backward without a forward that awaits it; "
                "a forward that ran in bypass() must end its backward there, and "
                "checkpoints must be reentrant, as Megatron-Core's are"
            )
            raise ReplayStateError(msg)
        self.recomputes += 1
        pending = self._pending.popleft()
        wide = pending.ids_TK.long()
        # Only after the read was given to the stream: the last one frees the buffers.
        if pending.buffers is not None:
            pending.buffers.read()
        return wide

    def _check_bypass(self, recompute: bool) -> None:
        if recompute and self._pending:
            msg = (
                f"{self._where()}: a backward ran inside bypass() while replayed microbatches "
                "await their recompute; run the step's backward outside of bypass()"
            )
            raise ReplayStateError(msg)

    def _raise_rows(self, found: tuple[int, ...], expected: tuple[int, ...]) -> NoReturn:
        msg = (
            f"{self._where()}: the open microbatch has routes [rows, topk] = {list(found)} and "
            f"the router has {list(expected)}; row_ids must name every row of this rank once"
        )
        raise ReplayMismatch(msg, found=list(found), expected=list(expected))

    def _where(self) -> str:
        return f"layer {self.layer_number} (1-based), chunk {self._chunk.vp_stage}"
