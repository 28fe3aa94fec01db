"""The canary: does the router, asked itself, choose about what it is made to replay?

Recorded and live choice agree on about nine of ten experts when rows, layers and weights
are right (Megatron-LM issue 4168), and by chance alone when one of them is wrong. Every
count can be right while each row executes its neighbour's experts; only this tells.

In the first step every router also runs its live top-k once, later one router of a step;
a step of too few rows to judge is followed by another first one. The choice is held
against the recorded experts as they are, and against what they would be if a known bug
had arranged them: one row early or late, the plane of the layer before or behind,
batch-major rows. The sums go to pinned memory on their own and are awaited at the end
of the step: they were copied in the forward of its first microbatch, so a device that is
busy with the backward does not go idle, and no gradient of a misrouted step is handed out.

Shape legend: T rows, E experts, K topk, A arrangements, G stretches of rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch

from routereplay.patches.replay.arrangements import Arranger
from routereplay.patches.replay.buffers import Fence
from routereplay.patches.replay.microbatch import Microbatch
from routereplay.patches.replay.report import CanaryReading
from routereplay.patches.replay.verdict import MIN_CHOICES, Comparison, judged

_MAX_STRETCHES = 16


class _Pending(NamedTuple):
    comparison: Comparison
    copied: Fence


class Canary:
    """Compares one router call of every `every`-th step of one model chunk, first of all routers.

    Args:
        every: steps between comparisons; 0 never compares.
        layer_numbers: the layers (1-based) to look at, in turn.
    """

    def __init__(self, every: int, layer_numbers: Sequence[int]) -> None:
        self._every = every
        self._numbers = layer_numbers
        self._step = 0
        self._looked = 0
        self._trusted = False
        """Whether a step has judged all layers."""
        self._armed: set[int] = set()
        self._pending: deque[_Pending] = deque()
        self._arranger = Arranger()

    def begin_step(self) -> None:
        """Choose the layers of this step whose next call is compared, or none."""
        self._step += 1
        self._armed = set()
        if self._every and self._numbers and (self._step - 1) % self._every == 0:
            one = self._numbers[self._looked % len(self._numbers)]
            self._armed = {one} if self._trusted else set(self._numbers)

    def wants(self, layer_number: int) -> bool:
        """Whether the next call of this layer's router is the one to compare."""
        return layer_number in self._armed

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def compare(
        self,
        layer_number: int,
        slot: int,
        live_TK: torch.Tensor,
        microbatch: Microbatch,
        num_experts: int,
    ) -> None:
        """Start comparing a router's own choice `[rows, topk]` with plane `slot`."""
        self._armed.discard(layer_number)
        if not live_TK.numel():
            return
        found = self._arranger.arrange(microbatch, slot)
        chosen_TE = torch.zeros(len(live_TK), num_experts, dtype=torch.bool, device=live_TK.device)
        chosen_TE.scatter_(1, live_TK.long(), value=True)
        # Ids under live rows may be anything; they are not counted.
        ids_ATK = found.ids_ATK.clamp(0, num_experts - 1).long()
        hits_AT = chosen_TE.expand(len(ids_ATK), -1, -1).gather(2, ids_ATK).sum(2)
        # A row of somebody else's experts shares none with its own choice more often than one
        # of its own ever does: the rows that share nothing say how many there are.
        strange_AT = hits_AT.eq(0) & found.counts_AT
        stretches = min(max(live_TK.numel() // (2 * MIN_CHOICES), 1), _MAX_STRETCHES)
        sums_3AG = _sum_stretches(
            torch.stack([hits_AT * found.counts_AT, found.counts_AT, strange_AT]), stretches
        )
        hits_AG, rows_AG, strange_AG = _to_host(sums_3AG)
        comparison = Comparison(
            step=self._step,
            layer_number=layer_number,
            topk=live_TK.shape[1],
            names=found.names,
            hits_AG=hits_AG,
            rows_AG=rows_AG,
            strange_AG=strange_AG,
        )
        copied = Fence(live_TK.device)
        copied.record()
        self._pending.append(_Pending(comparison, copied))
        self._looked += 1

    def judge(self) -> list[CanaryReading]:
        """Return the comparisons of this step, once they have arrived.

        Raises:
            ReplayMisrouted: something else than "these are this token's experts" explains
                the router's choice.
        """
        readings = []
        while self._pending:
            pending = self._pending.popleft()
            pending.copied.wait()
            readings.append(judged(pending.comparison))
        if readings and not self._armed and all(reading.judged for reading in readings):
            self._trusted = True
        return readings

    def forget(self) -> None:
        """Drop the comparison of a step that was not finished."""
        self._armed = set()
        self._pending.clear()


def canaries(
    every: int, layer_number: int | None, chunks: Sequence[Sequence[int]], *, whole: bool
) -> list[Canary]:
    """Return a canary for each chunk, given the layer numbers (1-based) of its routers.

    Args:
        every: as for `Canary`.
        layer_number: the only layer to look at, by default all in turn.
        whole: whether `chunks` are all of the model, and not of one pipeline stage.

    Raises:
        ValueError: `every` is negative, or the model has no router on that layer.
    """
    if every < 0:
        msg = f"canary_every={every}; 0 switches it off, n compares every n-th step"
        raise ValueError(msg)
    numbers = [number for chunk in chunks for number in chunk]
    if layer_number is not None and whole and layer_number not in numbers:
        msg = f"canary_layer={layer_number}; the model has routers on layers {numbers} (1-based)"
        raise ValueError(msg)
    return [
        Canary(every, [number for number in chunk if layer_number in (None, number)])
        for chunk in chunks
    ]


def _sum_stretches(values_3AT: torch.Tensor, stretches: int) -> torch.Tensor:
    rows = values_3AT.shape[-1]
    length = -(-rows // stretches)
    if missing := length * stretches - rows:
        values_3AT = torch.nn.functional.pad(values_3AT, (0, missing))
    return values_3AT.unflatten(-1, (stretches, length)).sum(-1)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
