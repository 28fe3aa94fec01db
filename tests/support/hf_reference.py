"""Which experts transformers' own forward picks: the reference for recorded routes."""

from __future__ import annotations

import functools

import numpy as np
import torch
from transformers import AutoModelForCausalLM


@functools.lru_cache(maxsize=2)
def _model(path):
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def expert_sets(path, token_ids):
    """`[tokens, layers, topk]` sorted ids of a float32 forward; dense layers are zero.

    Qwen3-MoE: the top-k of softmax(logits) is the top-k of the logits.
    """
    model = _model(str(path))
    topk = model.config.num_experts_per_tok
    found, hooks = {}, []
    for index, layer in enumerate(model.model.layers):
        gate = getattr(layer.mlp, "gate", None)
        if gate is not None:
            hooks.append(gate.register_forward_hook(functools.partial(_record, found, index, topk)))
    with torch.no_grad():
        model(torch.as_tensor(np.asarray(token_ids, np.int64))[None])
    for hook in hooks:
        hook.remove()
    experts = np.zeros((len(token_ids), len(model.model.layers), topk), np.int64)
    for index, ids in found.items():
        experts[:, index] = ids
    return experts


def _record(found, index, topk, gate, arguments, _output):
    hidden = arguments[0].reshape(-1, arguments[0].shape[-1])
    logits = hidden.float() @ gate.weight.float().T
    found[index] = np.sort(logits.topk(topk, dim=-1).indices.numpy(), axis=-1)


def assert_rows_equal_the_reference(path, token_ids, experts):
    """Every recorded row names the experts that the reference forward picks."""
    reference = expert_sets(path, token_ids)[: len(experts)]
    wrong = (np.sort(experts, axis=-1) != reference).any(axis=-1)

    assert experts.shape == reference.shape
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} layer-rows differ: {np.argwhere(wrong)}"
