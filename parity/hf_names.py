"""Which tensors of a checkpoint each parameter of the Megatron-Core model is made of.

Shape legend: H hidden size, D head dimension, G query groups, Q query heads of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch

from routereplay.parity.hf_config import DecoderShape


@dataclass(frozen=True, slots=True)
class Source:
    """Where one Megatron parameter comes from."""

    names: tuple[str, ...]
    merge: Callable[..., torch.Tensor]
    """Of the tensors with these names, in order."""
    expert: int | None = None
    """Which expert's part of tensors that hold all experts."""
    sections: int = 1
    """Equal parts of dimension 0 of which each rank of tensor parallelism has its own part."""


def parameter_sources(shape: DecoderShape, names: Collection[str]) -> Iterator[tuple[str, Source]]:
    """Yield the name of each parameter of a model that is not cut, and its source.

    Args:
        names: of the checkpoint's tensors: some families exist with one tensor for each
            expert and with one for all.
    """
    model = shape.prefix
    yield "embedding.word_embeddings.weight", _same(f"{model}embed_tokens.weight")
    yield "decoder.final_layernorm.weight", _same(f"{model}norm.weight")
    if not shape.tied_embeddings:
        yield "output_layer.weight", _same("lm_head.weight")
    for layer_idx, moe in enumerate(shape.moe_layers):
        megatron, hf = f"decoder.layers.{layer_idx}", f"{model}layers.{layer_idx}"
        yield f"{megatron}.input_layernorm.weight", _same(f"{hf}.input_layernorm.weight")
        yield (
            f"{megatron}.pre_mlp_layernorm.weight",
            _same(f"{hf}.post_attention_layernorm.weight"),
        )
        attention = f"{megatron}.self_attention"
        if shape.linear_layers[layer_idx]:
            yield from _delta_net(attention, f"{hf}.linear_attn")
        else:
            yield from _attention(shape, attention, f"{hf}.self_attn")
        if moe:
            yield from _experts(shape, f"{megatron}.mlp", hf, names)
        else:
            yield from _mlp(f"{megatron}.mlp", f"{hf}.mlp")


def _attention(shape: DecoderShape, megatron: str, hf: str) -> Iterator[tuple[str, Source]]:
    def interleave(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # Megatron keeps, for each group of query heads, its queries, then its key and value.
        rest = query.shape[1:]
        parts = [part.view(shape.num_kv_heads, -1, *rest) for part in (query, key, value)]
        if shape.family.linear_attention:
            # Each query head comes with its output gate: [G, Q, 2, D, H] -> all Q, all gates.
            heads = shape.num_heads // shape.num_kv_heads
            whole = query.view(shape.num_kv_heads, heads, 2, shape.head_dim, *rest)
            parts[0] = whole.transpose(1, 2).reshape(shape.num_kv_heads, -1, *rest)
        return torch.cat(parts, dim=1).reshape(-1, *rest)

    for kind in ("weight", "bias") if shape.family.qkv_bias else ("weight",):
        names = tuple(f"{hf}.{part}_proj.{kind}" for part in "qkv")
        yield f"{megatron}.linear_qkv.{kind}", Source(names, interleave)
    yield f"{megatron}.linear_proj.weight", _same(f"{hf}.o_proj.weight")
    if shape.family.qk_norm:
        yield f"{megatron}.q_layernorm.weight", _same(f"{hf}.q_norm.weight")
        yield f"{megatron}.k_layernorm.weight", _same(f"{hf}.k_norm.weight")


def _delta_net(megatron: str, hf: str) -> Iterator[tuple[str, Source]]:
    inputs = tuple(f"{hf}.in_proj_{part}.weight" for part in ("qkv", "z", "b", "a"))
    yield f"{megatron}.in_proj.weight", Source(inputs, _joined)
    yield f"{megatron}.conv1d.weight", _same(f"{hf}.conv1d.weight")
    yield f"{megatron}.dt_bias", _same(f"{hf}.dt_bias")
    yield f"{megatron}.A_log", _same(f"{hf}.A_log")
    yield f"{megatron}.out_norm.weight", _same(f"{hf}.norm.weight")
    yield f"{megatron}.out_proj.weight", _same(f"{hf}.out_proj.weight")


def _experts(
    shape: DecoderShape, megatron: str, layer: str, names: Collection[str]
) -> Iterator[tuple[str, Source]]:
    known = shape.family.experts
    assert known is not None
    hf = f"{layer}.{known.block}"
    yield f"{megatron}.router.weight", _same(f"{hf}.gate.weight")
    in_one = f"{hf}.experts.gate_up_proj" in names
    for expert in range(shape.num_experts):
        own = f"{megatron}.experts.local_experts.{expert}"
        if in_one:
            yield (
                f"{own}.linear_fc1.weight",
                Source((f"{hf}.experts.gate_up_proj",), _only, expert, sections=2),
            )
            yield (
                f"{own}.linear_fc2.weight",
                Source((f"{hf}.experts.down_proj",), _only, expert),
            )
        else:
            parts = (known.gate, known.up, known.down)
            yield from _mlp(own, f"{hf}.experts.{expert}", parts)
    if shape.shared_size:
        yield from _mlp(f"{megatron}.shared_experts", f"{hf}.shared_expert")
        yield f"{megatron}.shared_experts.gate_weight", _same(f"{hf}.shared_expert_gate.weight")


def _mlp(
    megatron: str, hf: str, parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> Iterator[tuple[str, Source]]:
    gate, up, down = (f"{hf}.{part}.weight" for part in parts)
    yield (
        f"{megatron}.linear_fc1.weight",
        Source((gate, up), _joined, sections=2),
    )
    yield f"{megatron}.linear_fc2.weight", _same(down)


def _same(name: str) -> Source:
    return Source((name,), _only)


def _only(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _joined(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensors)
