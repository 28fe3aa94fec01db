"""Which experts a Megatron model really executed, read from its routers' own output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from routereplay.patches.megatron.discovery import discover


@contextmanager
def executed_experts(model: Any, num_layers: int, topk: int) -> Iterator[list[np.ndarray]]:
    """Collect the routing maps of every forward inside; the list fills at each forward.

    Yields:
        One `[rows, num_layers, topk]` array of sorted int64 ids for each forward of the
        model, dense layers zero; rows are in the order of the routers.
    """
    routers = [found for chunk in discover([model], None).chunks for found in chunk.routers]
    maps: dict[int, torch.Tensor] = {}
    forwards: list[np.ndarray] = []

    def collect(layer_idx: int, routing_map: torch.Tensor) -> None:
        maps[layer_idx] = routing_map
        if len(maps) == len(routers):
            forwards.append(_sorted_ids(maps, num_layers, topk))
            maps.clear()

    hooks = [
        found.router.register_forward_hook(
            lambda _router, _args, output, layer_idx=found.layer_idx: collect(layer_idx, output[1])
        )
        for found in routers
    ]
    try:
        yield forwards
    finally:
        for hook in hooks:
            hook.remove()


def _sorted_ids(maps: dict[int, torch.Tensor], num_layers: int, topk: int) -> np.ndarray:
    rows = len(next(iter(maps.values())))
    experts = np.zeros((rows, num_layers, topk), np.int64)
    for layer_idx, routing_map in maps.items():
        # nonzero() lists a row's experts in ascending order.
        experts[:, layer_idx] = routing_map.nonzero()[:, 1].view(rows, topk).cpu().numpy()
    return experts
