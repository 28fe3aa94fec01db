"""`HookedLayer`: a forward hook on a router of transformers, in forward and in recompute.

transformers checkpoints layers in both of torch's ways, and a training loop is free in its
order of forwards and backwards. So nothing is derived from an order: a call is kept until
its backward has passed, the latest is the one that autograd recomputes first, and the
logits prove that it was the same call.

Shape legend: T rows, E experts, K topk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from routereplay.patches.replay.errors import ReplayStateError
from routereplay.patches.replay.layer import LayerReplay, in_backward
from routereplay.patches.transformers.weights import Weigh

if TYPE_CHECKING:
    from routereplay.patches.replay.chunk import ChunkReplay
    from routereplay.patches.replay.microbatch import Microbatch

_SAMPLED_ROWS = 8
_SAME_CALL = 0.05
"""Relative difference of logits up to which a recompute is that of a call. Kernels that add
in another order differ by 1e-2 in bfloat16 at most; other tokens by 1."""


class _Call(NamedTuple):
    """A forward whose backward has not passed."""

    ids_TK: torch.Tensor
    logits: torch.Tensor
    """`[<= 8, E]`: some of the rows."""


class HookedLayer(LayerReplay):
    """Replays one decoder layer's recorded experts."""

    def __init__(
        self, chunk: ChunkReplay[HookedLayer], slot: int, layer_number: int, *, weigh: Weigh
    ) -> None:
        super().__init__(chunk, slot, layer_number)
        self._weigh = weigh
        self._calls: list[_Call] = []
        self._logits = torch.empty(0)
        """Of the call that is being answered."""
        self._strangers: torch.Tensor | None = None
        """Recomputes that were not of the call they were taken for, counted on the device."""

    @property
    def pending(self) -> int:
        """Calls whose backward has not come."""
        return len(self._calls)

    def clear(self) -> None:
        """Forget the step."""
        super().clear()
        self._calls = []
        self._strangers = None

    def findings(self) -> list[str]:
        """Return what is wrong at the end of a step; reads the device if it recomputed."""
        found = []
        if self.pending:
            found.append(
                f"{self.where()}: the backward of {self.pending} forwards never came; passes "
                "without backward run under torch.no_grad()"
            )
        if self._strangers is not None and (count := int(self._strangers)):
            found.append(f"{self.where()}: {count} {_STRANGER}")
        return found

    # Traced, the state of a step would be burnt into the graph.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def replace_output(
        self, router: Any, _args: Any, output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Return the router's output with the recorded experts and their weights.

        A forward hook. Weights are made of the router's own logits, so gradients reach it.

        Raises:
            ReplayStateError: no microbatch is open, or it was executed already.
            ReplayMismatch: the rows are not the microbatch's.
        """
        logits, _, live = output
        self._logits = logits
        ids = self.execute(len(live), live.shape[-1], logits.shape[-1], lambda: live)
        if ids is None:
            return None
        weights = self._weigh(router, logits, ids)
        if weights.requires_grad and not in_backward():
            call = self._calls[-1]
            weights.register_hook(lambda _: self._backward_passed(call))
        return logits, weights, ids.to(live.dtype)

    def _remember(
        self, ids_TK: torch.Tensor, input_shape: tuple[int, int], buffers: Microbatch | None
    ) -> None:
        awaits_recompute = self.trains and not torch.is_grad_enabled()
        if awaits_recompute or self._logits.requires_grad:
            # A copy of its own: the buffers may serve the next microbatch before this backward.
            ids = ids_TK if buffers is None else ids_TK.clone()
            self._calls.append(_Call(ids, _sample(self._logits)))

    def _recompute(self) -> torch.Tensor:
        if not self._calls:
            msg = (
                f"{self.where()}: recomputed in backward without a forward that awaits it; a "
                "forward that ran in bypass() must end its backward there"
            )
            raise ReplayStateError(msg)
        self.recomputes += 1
        call = self._calls.pop()
        now = _sample(self._logits)
        differs = (now - call.logits).norm() > _SAME_CALL * call.logits.norm()
        # Read at the end of the step: nothing waits for the device here.
        self._strangers = differs.long() + (0 if self._strangers is None else self._strangers)
        return call.ids_TK.long()

    def _backward_passed(self, call: _Call) -> None:
        self._calls = [kept for kept in self._calls if kept is not call]


def _sample(logits: torch.Tensor) -> torch.Tensor:
    rows = max(len(logits), 1)
    step = -(-rows // _SAMPLED_ROWS)
    return logits.detach()[::step].float()


_STRANGER = (
    "recomputes of another forward than the latest whose backward had not passed; with "
    "activation checkpointing run the backwards in the opposite order of the forwards"
)
