"""Load a Qwen3-MoE Hugging Face checkpoint into a stock Megatron-Core GPTModel.

For comparing engines: Megatron-Core's local layers (no Transformer Engine, no fusion),
experts as SequentialMLP, cut as the open process groups say. Every tensor of the
checkpoint has its place and every parameter of the model is set, or nothing is returned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from routereplay.parity.errors import ConversionError
from routereplay.parity.hf_config import (
    Qwen3MoeShape,
    read_qwen3_moe_config,
    transformer_config,
)
from routereplay.parity.sharding import own_part, use_sequence_parallel_norms, whole_name


class _Source(NamedTuple):
    """Where one Megatron parameter comes from."""

    names: tuple[str, ...]
    merge: Callable[..., torch.Tensor]


def load_qwen3_moe(
    path: str | Path, *, dtype: torch.dtype = torch.float32, **config_overrides: Any
) -> Any:
    """Return this rank's `GPTModel` with the weights of the checkpoint folder `path`, in eval mode.

    Megatron-Core's process groups must be open; `Topology.group_sizes()` belongs in
    `config_overrides` if one is larger than 1. Logits come out whole on every rank of
    tensor parallelism.

    Args:
        dtype: of parameters and arithmetic, torch.float32 or torch.bfloat16.
        config_overrides: any field of `TransformerConfig`.

    Raises:
        ConversionError: another architecture, or tensors missing, unused or misshapen.
    """
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.models.gpt.gpt_model import GPTModel

    path = Path(path)
    shape = read_qwen3_moe_config(path)
    # Every weight is read from the checkpoint: drawing it first would take longer.
    overrides = {"perform_initialization": False} | config_overrides
    config = transformer_config(shape, dtype, **overrides)
    if shape.tied_embeddings and config.pipeline_model_parallel_size > 1:
        msg = f"{path} ties its embeddings, which are not loaded over pipeline stages; use pp1"
        raise ConversionError(msg)
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm")
    if config.sequence_parallel:
        use_sequence_parallel_norms(spec)
    model = GPTModel(
        config,
        spec,
        vocab_size=shape.vocab_size,
        max_sequence_length=shape.max_tokens,
        position_embedding_type="rope",
        rotary_base=int(shape.rope_theta),
        share_embeddings_and_output_weights=shape.tied_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=False,
    )
    _copy_weights(model, dict(_sources(shape)), path)
    # As Float16Module does: the local norms are made in float32 whatever params_dtype says.
    return model.to(dtype).eval()


def _copy_weights(model: Any, sources: Mapping[str, _Source], path: Path) -> None:
    from megatron.core import parallel_state

    files = _tensor_files(path)
    parameters = {whole_name(model, name): p for name, p in model.named_parameters()}
    problems = [f"no rule sets {name}" for name in sorted(parameters.keys() - sources.keys())]
    if not (
        parallel_state.get_pipeline_model_parallel_world_size() > 1
        or parallel_state.get_expert_model_parallel_world_size() > 1
    ):
        lacking = sorted(sources.keys() - parameters.keys())
        problems += [f"the model lacks {name}" for name in lacking]
    used = {name for source in sources.values() for name in source.names}
    problems += [f"the checkpoint lacks {name}" for name in sorted(used - files.keys())]
    problems += [f"the checkpoint's {name} is unused" for name in sorted(files.keys() - used)]
    if problems:
        _raise(path, problems)
    with torch.no_grad(), _Tensors(files) as tensors:
        for name, parameter in parameters.items():
            source = sources[name]
            weight = own_part(
                name, parameter, source.merge(*map(tensors.__getitem__, source.names))
            )
            if weight.shape != parameter.shape:
                problems.append(
                    f"{name} is {tuple(parameter.shape)}, made of {source.names} it would be "
                    f"{tuple(weight.shape)}"
                )
            else:
                parameter.copy_(weight)
    if problems:
        _raise(path, problems)


def _sources(shape: Qwen3MoeShape) -> Iterator[tuple[str, _Source]]:
    yield "embedding.word_embeddings.weight", _same("model.embed_tokens.weight")
    yield "decoder.final_layernorm.weight", _same("model.norm.weight")
    if not shape.tied_embeddings:
        yield "output_layer.weight", _same("lm_head.weight")
    for layer_idx, moe in enumerate(shape.moe_layers):
        megatron, hf = f"decoder.layers.{layer_idx}", f"model.layers.{layer_idx}"
        yield f"{megatron}.input_layernorm.weight", _same(f"{hf}.input_layernorm.weight")
        yield (
            f"{megatron}.pre_mlp_layernorm.weight",
            _same(f"{hf}.post_attention_layernorm.weight"),
        )
        yield from _attention(shape, f"{megatron}.self_attention", f"{hf}.self_attn")
        if moe:
            yield f"{megatron}.mlp.router.weight", _same(f"{hf}.mlp.gate.weight")
            for expert in range(shape.num_experts):
                yield from _mlp(
                    f"{megatron}.mlp.experts.local_experts.{expert}", f"{hf}.mlp.experts.{expert}"
                )
        else:
            yield from _mlp(f"{megatron}.mlp", f"{hf}.mlp")


def _attention(shape: Qwen3MoeShape, megatron: str, hf: str) -> Iterator[tuple[str, _Source]]:
    def interleave(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # Megatron keeps, for each group of query heads, its queries, then its key and value.
        groups = [
            part.view(shape.num_kv_heads, -1, shape.hidden_size) for part in (query, key, value)
        ]
        return torch.cat(groups, dim=1).reshape(-1, shape.hidden_size)

    projections = tuple(f"{hf}.{name}_proj.weight" for name in ("q", "k", "v"))
    yield f"{megatron}.linear_qkv.weight", _Source(projections, interleave)
    yield f"{megatron}.linear_proj.weight", _same(f"{hf}.o_proj.weight")
    yield f"{megatron}.q_layernorm.weight", _same(f"{hf}.q_norm.weight")
    yield f"{megatron}.k_layernorm.weight", _same(f"{hf}.k_norm.weight")


def _mlp(megatron: str, hf: str) -> Iterator[tuple[str, _Source]]:
    halves = (f"{hf}.gate_proj.weight", f"{hf}.up_proj.weight")
    yield f"{megatron}.linear_fc1.weight", _Source(halves, lambda *parts: torch.cat(parts))
    yield f"{megatron}.linear_fc2.weight", _same(f"{hf}.down_proj.weight")


def _same(name: str) -> _Source:
    return _Source((name,), lambda tensor: tensor)


class _Tensors:
    """The tensors of a checkpoint, read one by one from its open files."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> _Tensors:
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.clear()  # safetensors unmaps a file when its handle is dropped.

    def __getitem__(self, name: str) -> torch.Tensor:
        path = self._files[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        return self._open[path].get_tensor(name)


def _tensor_files(path: Path) -> dict[str, Path]:
    index = path / "model.safetensors.index.json"
    if index.exists():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: path / file for name, file in weight_map.items()}
    single = path / "model.safetensors"
    if not single.exists():
        msg = f"{path} holds neither model.safetensors nor model.safetensors.index.json"
        raise ConversionError(msg)
    with safe_open(single, framework="pt") as tensors:
        return dict.fromkeys(tensors.keys(), single)


def _raise(path: Path, problems: list[str]) -> None:
    shown = "".join(f"\n  - {problem}" for problem in problems[:20])
    more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
    msg = f"{path} cannot be converted whole:{shown}{more}"
    raise ConversionError(msg, problems=problems)
