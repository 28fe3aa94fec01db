"""Load a Hugging Face checkpoint into a stock Megatron-Core GPTModel.

For comparing engines: Megatron-Core's local layers (no Transformer Engine, no fusion),
experts as SequentialMLP, cut as the open process groups say. Every tensor of the
checkpoint has its place and every parameter of the model is set, or nothing is returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from routereplay.parity.errors import ConversionError
from routereplay.parity.hf_config import read_hf_config
from routereplay.parity.hf_names import Source, parameter_sources
from routereplay.parity.hf_tensors import CheckpointTensors, tensor_files
from routereplay.parity.megatron_config import block_spec, transformer_config
from routereplay.parity.sharding import own_part, whole_name

_BESIDE = ("model.visual.", "mtp.")
"""Tensors of models whose decoder stands beside others: a vision tower, draft layers."""


def load_hf_checkpoint(
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
    from megatron.core.models.gpt.gpt_model import GPTModel

    path = Path(path)
    shape = read_hf_config(path)
    # Every weight is read from the checkpoint: drawing it first would take longer.
    overrides = {"perform_initialization": False} | config_overrides
    config = transformer_config(shape, dtype, **overrides)
    if shape.tied_embeddings and config.pipeline_model_parallel_size > 1:
        msg = f"{path} ties its embeddings, which are not loaded over pipeline stages; use pp1"
        raise ConversionError(msg)
    model = GPTModel(
        config,
        block_spec(shape, config),
        vocab_size=shape.vocab_size,
        max_sequence_length=shape.max_tokens,
        position_embedding_type="rope",
        rotary_base=int(shape.rope_theta),
        rotary_percent=shape.rope_share,
        share_embeddings_and_output_weights=shape.tied_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=False,
    )
    files = tensor_files(path)
    _copy_weights(model, dict(parameter_sources(shape, files.keys())), files, path)
    # As Float16Module does: the local norms are made in float32 whatever params_dtype says.
    return model.to(dtype).eval()


def _copy_weights(
    model: Any, sources: Mapping[str, Source], files: Mapping[str, Path], path: Path
) -> None:
    from megatron.core import parallel_state

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
    unused = sorted(name for name in files.keys() - used if not name.startswith(_BESIDE))
    problems += [f"the checkpoint's {name} is unused" for name in unused]
    if problems:
        _raise(path, problems)
    with torch.no_grad(), CheckpointTensors(files) as tensors:
        for name, parameter in parameters.items():
            source = sources[name]
            whole = source.merge(*(tensors.read(one, source.expert) for one in source.names))
            weight = own_part(name, parameter, whole, source.sections)
            if weight.shape != parameter.shape:
                problems.append(
                    f"{name} is {tuple(parameter.shape)}, made of {source.names} it would be "
                    f"{tuple(weight.shape)}"
                )
            else:
                parameter.copy_(weight)
    if problems:
        _raise(path, problems)


def _raise(path: Path, problems: list[str]) -> None:
    shown = "".join(f"\n  - {problem}" for problem in problems[:20])
    more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
    msg = f"{path} cannot be converted whole:{shown}{more}"
    raise ConversionError(msg, problems=problems)
