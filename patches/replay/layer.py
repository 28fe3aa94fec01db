"""`LayerReplay`: which experts one router executes, and proof that it asked.

Forward and recompute are told apart exactly: activation recompute runs inside an
autograd backward and nothing else of a router does. A FIFO for each router then gives
the microbatch, because a model chunk runs its backwards in the order of its forwards,
in every schedule of Megatron-Core. Shared between chunks it would not be right. Hosts
with another order say so in a subclass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from routereplay.patches.replay.errors import ReplayMismatch, ReplayStateError

if TYPE_CHECKING:
    from routereplay.patches.replay.chunk import ChunkReplay
    from routereplay.patches.replay.microbatch import Microbatch


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

    def __init__(self, chunk: ChunkReplay[Any], slot: int, layer_number: int) -> None:
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

    @property
    def trains(self) -> bool:
        """Whether the forward runs with gradients, so that its checkpoints recompute."""
        return self._chunk.trains

    @property
    def is_bypassed(self) -> bool:
        """Whether the router decides by itself now."""
        return self._chunk.bypasses > 0

    def clear(self) -> None:
        """Forget the step."""
        self.calls = 0
        self.recomputes = 0
        self._pending.clear()

    def findings(self) -> list[str]:
        """Return what is wrong at the end of a step."""
        if not self.pending:
            return []
        return [
            f"{self.where()}: {self.pending} checkpointed calls were never recomputed; passes "
            "without backward run under torch.no_grad()"
        ]

    def execute(
        self, rows: int, topk: int, num_experts: int, live_ids: Callable[[], torch.Tensor]
    ) -> torch.Tensor | None:
        """Return the experts of one router call, `[rows, topk]` int64; None in `bypass()`.

        Args:
            rows, topk, num_experts: of the router that calls.
            live_ids: the router's own choice `[rows, topk]`; called where it is needed.

        Raises:
            ReplayStateError: no microbatch is open, or it was executed already.
            ReplayMismatch: the rows are not the microbatch's.
        """
        recompute = in_backward()
        if self.is_bypassed:
            self._check_bypass(recompute)
            return None
        expected = (rows, topk)
        if recompute:
            ids = self._recompute()
            self._check_rows(ids, expected)
            return ids
        return self._forward(expected, num_experts, live_ids)

    def expected_input(self) -> tuple[int, int] | None:
        """Return the leading sizes that the hidden states of the next call have, if any is due."""
        if in_backward():
            return self._pending[0].input_shape if self._pending else None
        return self._chunk.current.input_shape if self._chunk.current else None

    def _forward(
        self, expected: tuple[int, int], num_experts: int, live_ids: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        microbatch = self._next_microbatch()
        microbatch.wait()
        ids = microbatch.ids_LTK[self._slot]
        self._check_rows(ids, expected)
        canary = self._chunk.canary
        compared = canary.wants(self.layer_number) and microbatch.origins.recorded
        buffers: Microbatch | None = microbatch
        if compared or microbatch.has_live:
            chosen = live_ids()
            if compared:
                canary.compare(self.layer_number, self._slot, chosen, microbatch, num_experts)
            if microbatch.has_live:
                # The router's own choice is kept for recompute: on a near-tie a second
                # forward may choose otherwise.
                ids = torch.where(microbatch.live_T.unsqueeze(1), chosen.to(ids.dtype), ids)
                buffers = None
        if self._chunk.recording is not None:
            self._chunk.recording.put(self._slot, ids if buffers is None else ids.clone())
        self._remember(ids, microbatch.input_shape, buffers)
        wide = ids.long()
        microbatch.read()
        return wide

    def _next_microbatch(self) -> Microbatch:
        """Return the open microbatch and count this call of it."""
        microbatch = self._chunk.current
        if microbatch is None:
            msg = (
                f"{self.where()}: the router was called with no open microbatch; call "
                "begin_microbatch() in forward_step, inside step(), or run passes that must "
                "not replay inside bypass()"
            )
            raise ReplayStateError(msg)
        self.calls += 1
        if self.calls != self._chunk.opened:
            msg = (
                f"{self.where()}: router call {self.calls} of this step with "
                f"{self._chunk.opened} microbatches begun; each microbatch calls each router "
                "once, and begin_microbatch() comes before each forward"
            )
            raise ReplayStateError(msg, calls=self.calls, microbatches=self._chunk.opened)
        return microbatch

    def _remember(
        self, ids_TK: torch.Tensor, input_shape: tuple[int, int], buffers: Microbatch | None
    ) -> None:
        """Keep what a recompute must execute again, if this call will have one."""
        if self.trains and not torch.is_grad_enabled():
            self._pending.append(_Pending(ids_TK, input_shape, buffers))
            if buffers is not None:
                buffers.keep()

    def _recompute(self) -> torch.Tensor:
        """Return the ids `[rows, topk]` int64 of the call that is repeated."""
        if not self._pending:
            msg = (
                f"{self.where()}: recomputed in backward without a forward that awaits it; "
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
        if recompute and self.pending:
            msg = (
                f"{self.where()}: a backward ran inside bypass() while replayed microbatches "
                "await their recompute; run the step's backward outside of bypass()"
            )
            raise ReplayStateError(msg)

    def _check_rows(self, ids_TK: torch.Tensor, expected: tuple[int, int]) -> None:
        if ids_TK.shape != expected:
            msg = (
                f"{self.where()}: the open microbatch has routes [rows, topk] = "
                f"{list(ids_TK.shape)} and the router has {list(expected)}; row_ids must name "
                "every row of this rank once"
            )
            raise ReplayMismatch(msg, found=list(ids_TK.shape), expected=list(expected))

    def where(self) -> str:
        """Return the layer and chunk, for an error."""
        return f"layer {self.layer_number} (1-based), chunk {self._chunk.vp_stage}"
