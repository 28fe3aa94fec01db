"""What can go wrong in silence in the trainer: batch, row ids, training step.

A mutant is right in every shape that its station could check.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from mutants import world as w
from mutants.changes import drafted, older, repeated, stale, twice, zeroed
from mutants.registry import mutant
from mutants.world import EXPERTS, LENGTH
from routereplay.client import PackedRoutes
from routereplay.patches.replay.layer import LayerReplay

# --- pack: the batch --------------------------------------------------------------------------


def _packed(change):
    def pack(packed: PackedRoutes) -> PackedRoutes:
        return replace(packed, experts=np.ascontiguousarray(change(packed.experts)))

    return pack


mutant("rows shifted by one", "pack", seen="verl#7106", short=True)(
    _packed(lambda rows: np.roll(rows, 1, 0))
)
mutant("layers shifted by one", "pack", seen="slime#819", short=True)(
    _packed(lambda rows: np.roll(rows, -1, 1))
)
mutant("two MoE layers swapped", "pack")(_packed(lambda rows: rows[:, [0, 2, 1, 3]]))
mutant("trajectories swapped", "pack")(_packed(lambda rows: np.roll(rows, LENGTH, 0)))
mutant("rows zeroed", "pack", seen="verl#4986", short=True)(_packed(lambda rows: zeroed(rows, 9)))
mutant("one row repeated", "pack")(_packed(repeated))
mutant("a third of the rows a stale row", "pack")(_packed(stale))
mutant("a draft model's rows in one layer", "pack")(_packed(drafted))
mutant("a stale prefix of an older policy", "pack", seen="miles#3277")(
    _packed(lambda rows: older(rows, len(rows) // 4))
)
mutant("one expert twice in a row", "pack")(_packed(twice))
mutant("ids past the experts", "pack", seen="SkyRL#2091")(
    _packed(lambda rows: rows + np.uint8(EXPERTS))
)
mutant("the last row missing", "pack", seen="Megatron-Core 0.16.1")(
    lambda packed: replace(
        packed, experts=packed.experts[:-2], live=packed.live[:-2], padding=packed.padding[:-2]
    )
)


@mutant("routes of more than 256 experts in bytes", "pack", seen="prime-rl#3350", short=True)
def _(packed):
    return replace(packed, num_experts=300)


@mutant("padding of one constant row of zeros", "pack", seen="NeMo-RL#3208")
def _(packed):
    padding = packed.padding.copy()
    padding[-4:] = True
    experts = packed.experts.copy()
    experts[-4:] = 0
    return replace(packed, experts=experts, padding=padding, live=packed.live & ~padding)


# --- placement: which row of the batch each position executes ----------------------------------

mutant("rows shifted by one", "placement", seen="verl#7106", short=True)(
    lambda ids: ids.roll(1, dims=1)
)
mutant("trajectories swapped", "placement")(lambda ids: ids.roll(LENGTH, dims=1))
mutant("zigzag of another context rank", "placement")(
    lambda ids: torch.cat(list(ids.chunk(4, dim=1))[::-1], dim=1)
)
mutant("rows of another batch", "placement")(lambda ids: ids + 7)
mutant("one row for all", "placement")(torch.zeros_like)
mutant("too few rows", "placement", seen="Megatron-Core 0.16.1", short=True)(
    lambda ids: ids[:, :-1]
)


# --- replay: the training step -----------------------------------------------------------------


@mutant("a forward without its microbatch", "replay", short=True)
def _(world, batch):
    with w.step(world):
        w.forward_backward(world, batch)


@mutant(
    "routes of a pass that never came back",
    "replay",
    seen="SkyRL#1908",
)
def _(world, batch):
    with w.step(world) as replay:
        replay.begin_microbatch(batch.packed, batch.row_ids)
        w.forward_only(world, batch)
        replay.begin_microbatch(batch.packed, batch.row_ids)
        w.forward_backward(world, batch)


@mutant("an old microbatch executed twice", "replay", seen="SkyRL#1908")
def _(world, batch):
    with w.step(world) as replay:
        replay.begin_microbatch(batch.packed, batch.row_ids)
        w.forward_backward(world, batch)
        w.forward_backward(world, batch)


@mutant("microbatches in another order", "replay", seen="SkyRL#1908")
def _(world, batch):
    """Tokens of one microbatch, routes of another with as many rows."""
    other = replace(batch, token_ids=batch.token_ids.roll(LENGTH, dims=1))
    with w.step(world) as replay:
        replay.begin_microbatch(batch.packed, batch.row_ids)
        w.forward_backward(world, other)


@mutant("a bypass that was left open", "replay", seen="NeMo-RL#4083", short=True)
def _(world, batch):
    with w.step(world) as replay:
        replay.begin_microbatch(batch.packed, batch.row_ids)
        with replay.bypass():
            w.forward_backward(world, batch)


@mutant("a teacher's pass inside the step", "replay", seen="NeMo-RL#4083")
def _(world, batch):
    with w.step(world) as replay:
        replay.begin_microbatch(batch.packed, batch.row_ids)
        w.forward_backward(world, batch)
        with torch.no_grad():
            w.forward_only(world, batch)


@mutant("live routing in the place of replay", "replay", seen="verl#7340")
def _(world, batch):
    """Another object stands on the routers: what was enabled never runs."""
    with w.step(world) as replay:
        for router in w.routers(world.model):
            router.router_replay = None
        replay.begin_microbatch(batch.packed, batch.row_ids)
        w.forward_backward(world, batch)


@mutant("rows of the layer before", "replay", seen="NeMo-RL#3903", short=True)
def _(world, batch):
    original = LayerReplay.__init__

    def shifted(self, *args, **fields):
        original(self, *args, **fields)
        self._slot = max(self._slot - 1, 0)

    LayerReplay.__init__ = shifted
    try:
        w.train(world, batch)
    finally:
        LayerReplay.__init__ = original


@mutant("sampled with other weights", "replay")
def _(world, batch):
    routers = w.routers(world.model)
    kept = [router.weight.detach().clone() for router in routers]
    generator = torch.Generator().manual_seed(3)
    try:
        with torch.no_grad():
            for router in routers:
                router.weight.copy_(torch.randn(router.weight.shape, generator=generator))
        w.train(world, batch)
    finally:
        with torch.no_grad():
            for router, weight in zip(routers, kept, strict=True):
                router.weight.copy_(weight)
