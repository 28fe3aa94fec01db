"""Which part of a whole checkpoint's weight a rank holds. Megatron's groups must be open."""

from __future__ import annotations

import re
from typing import Any

import torch

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.*)")
_EXPERT = re.compile(r"(.*\.local_experts\.)(\d+)(\..*)")


def whole_name(model: Any, name: str) -> str:
    """Return the name that a parameter of this rank has in a model that is not cut."""
    from megatron.core import parallel_state

    if (layer := _LAYER.match(name)) is None:
        return name
    layer_idx = model.decoder.layers[int(layer[1])].layer_number - 1
    name = f"decoder.layers.{layer_idx}.{layer[2]}"
    if (expert := _EXPERT.match(name)) is None:
        return name
    each = model.config.num_moe_experts // parallel_state.get_expert_model_parallel_world_size()
    first = parallel_state.get_expert_model_parallel_rank() * each
    return f"{expert[1]}{first + int(expert[2])}{expert[3]}"


def own_part(name: str, parameter: Any, whole: torch.Tensor, sections: int) -> torch.Tensor:
    """Return this rank's part of the weight `whole`, or `whole` if it is not cut.

    Args:
        sections: equal parts of the cut dimension of which each rank has a part: a gated MLP
            keeps gate and up in one weight.
    """
    from megatron.core import parallel_state

    dim = getattr(parameter, "partition_dim", -1)
    if whole.shape == parameter.shape or dim < 0 or _EXPERT.match(name):
        return whole
    size = parallel_state.get_tensor_model_parallel_world_size()
    rank = parallel_state.get_tensor_model_parallel_rank()
    parts = whole.chunk(sections, dim=dim)
    return torch.cat([part.chunk(size, dim=dim)[rank] for part in parts], dim=dim)
