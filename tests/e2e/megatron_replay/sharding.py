"""A whole model cut to a layout's ranks: built, filled with whole weights, compared."""

import re

import bench
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer.spec_utils import ModuleSpec

from routereplay.parity.norms import SequenceParallelNorm

EXPERT = re.compile(r"(.*\.local_experts\.)(\d+)(\..*)")
LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.*)")


class TokenWiseAttention(torch.nn.Module):
    """Stands for attention that needs Transformer Engine: the routers do not care."""

    def __init__(self, *_arguments, **_fields):
        super().__init__()

    def forward(self, hidden, *_arguments, **_fields):
        return hidden * 0.5, None


def token_wise(layout):
    """Whether the local attention refuses this layout."""
    return layout.packed or layout.size("context_parallel_size") > 1


def reference_key(layout):
    """Return what the reference of a layout depends on."""
    return token_wise(layout), layout.packed


def build_whole(layout):
    """Build the model of one rank alone; `layout` says which attention and batch it has."""
    return bench.build(None, spec_hook=_spec_hook(layout), **_positions(layout))


def build_chunks(layout, recompute):
    """Build this rank's chunks, each inside DDP."""
    fields = layout.sizes | layout.config | _positions(layout)
    fields |= {
        "pipeline_dtype": torch.float32,
        "batch_p2p_comm": False,
        "sequence_parallel": (
            layout.size("tensor_model_parallel_size") > 1 and not layout.scores_only
        ),
    }
    stages = layout.sizes.get("virtual_pipeline_model_parallel_size")
    chunks = []
    for vp_stage in range(stages) if stages else [None]:
        scope = {"ignore_virtual": stages is None, "vp_stage": vp_stage}
        stage = {
            "pre_process": parallel_state.is_pipeline_first_stage(**scope),
            "post_process": parallel_state.is_pipeline_last_stage(**scope),
            "vp_stage": vp_stage,
        }
        chunk = bench.build(recompute, spec_hook=_spec_hook(layout), stage=stage, **fields)
        _mark_experts(chunk)
        chunks.append(DistributedDataParallel(chunk.config, DistributedDataParallelConfig(), chunk))
    return chunks


def dismantle(chunks):
    """Empty every module of trained chunks, so that their process groups can close.

    A token dispatcher keeps probabilities with their graph, whose ends have the hooks of DDP,
    which hold DDP and so the dispatcher: a ring through C++ that no collector sees.
    """
    for module in [module for chunk in chunks for module in chunk.modules()]:
        vars(module).clear()


def load(chunks, weights):
    """Fill the chunks from the weights of the whole model."""
    with torch.no_grad():
        for name, parameter in named_parameters(chunks):
            parameter.copy_(own_part(name, parameter, weights[name]))


def differences(chunks, own, wholes, rounded_to=None):
    """Return by name how far `own` tensors, one for each parameter, are from the whole's parts.

    Relative to the largest entry of the whole. `rounded_to` are weights: what their own
    rounding explains, two units in the last place, is no difference.
    """
    found = {}
    for name, parameter in named_parameters(chunks):
        whole = wholes[name]
        apart = (own[name] - own_part(name, parameter, whole)).abs()
        if rounded_to is not None:
            unit = torch.finfo(whole.dtype).eps
            apart = apart - 2 * unit * own_part(name, parameter, rounded_to[name]).abs()
        found[name] = (apart.max().clamp(min=0) / (whole.abs().max() + 1e-12)).item()
    return found


def named_parameters(chunks):
    """Return the parameters of DDP's chunks, by the names that the whole model has for them."""
    return [
        (_whole_name(chunk.module, name), parameter)
        for chunk in chunks
        for name, parameter in chunk.module.named_parameters()
    ]


def own_part(name, parameter, whole):
    """Return this tensor-parallel rank's part of a whole weight or gradient."""
    if whole.shape == parameter.shape:
        return whole
    if EXPERT.match(name):
        group = parallel_state.get_expert_tensor_parallel_group()
    else:
        group = parallel_state.get_tensor_model_parallel_group()
    dim = parameter.partition_dim
    # A gated MLP keeps gate and up in one weight, and each rank a part of both.
    halves = whole.chunk(2, dim=dim) if name.endswith("linear_fc1.weight") else [whole]
    parts = [half.chunk(group.size(), dim=dim)[group.rank()] for half in halves]
    return torch.cat(parts, dim=dim)


def _whole_name(chunk, name):
    if (layer := LAYER.match(name)) is None:
        return name
    layer_idx = chunk.decoder.layers[int(layer[1])].layer_number - 1
    name = f"decoder.layers.{layer_idx}.{layer[2]}"
    if (expert := EXPERT.match(name)) is None:
        return name
    experts_each = bench.EXPERTS // parallel_state.get_expert_model_parallel_world_size()
    first = parallel_state.get_expert_model_parallel_rank() * experts_each
    return f"{expert[1]}{first + int(expert[2])}{expert[3]}"


def _mark_experts(chunk):
    """Let experts that are not cut like the rest be reduced over their own group.

    Megatron-Core marks them so from 0.19 on. Before, with one expert-parallel rank, it
    summed their gradients over the group of everything else, replayed or not
    (tensor_parallel/layers.py, `use_expert_pgs`).
    """
    config = chunk.config
    if config.expert_tensor_parallel_size != config.tensor_model_parallel_size:
        for name, parameter in chunk.named_parameters():
            if EXPERT.match(name):
                parameter.allreduce = False


def _positions(layout):
    return {"position_embedding": "none" if token_wise(layout) else "rope"}


def _spec_hook(layout):
    def change(spec):
        for layer in spec.layer_specs:
            layer.submodules.input_layernorm = SequenceParallelNorm
            layer.submodules.pre_mlp_layernorm = SequenceParallelNorm
            if token_wise(layout):
                layer.submodules.self_attention = ModuleSpec(module=TokenWiseAttention)
        spec.layer_norm = SequenceParallelNorm

    return change
