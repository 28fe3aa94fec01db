"""Which experts transformers' own forward picks: the reference for recorded routes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM


class Reference:
    """The experts that a forward of a checkpoint picks.

    Args:
        path: the checkpoint.
        change: done to the model after loading, such as merging an adapter.
        dtype: that the forward computes in.
    """

    def __init__(
        self,
        path: Path | str,
        change: Callable[[Any], None] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.set_num_threads(1)
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
        self._topk = self._model.config.num_experts_per_tok
        if change is not None:
            with torch.no_grad():
                change(self._model)

    def experts(self, token_ids: Sequence[int] | np.ndarray, cache: Any = None) -> np.ndarray:
        """Return `[tokens, layers, topk]`, each row sorted; dense layers are zero.

        Qwen3-MoE: the top-k of softmax(logits) is the top-k of the logits.

        Args:
            token_ids: what is fed to the model.
            cache: transformers' keys and values of the tokens before; those of these are added.
        """
        logits_TLE = self.logits(token_ids, cache)
        experts = np.sort(np.argsort(-logits_TLE, axis=-1)[..., : self._topk], axis=-1)
        experts[:, ~logits_TLE.any(axis=(0, 2))] = 0
        return experts

    def logits(self, token_ids: Sequence[int] | np.ndarray, cache: Any = None) -> np.ndarray:
        """Return the routers' logits, `[tokens, layers, experts]`; zero for dense layers."""
        found: dict[int, np.ndarray] = {}
        layers = self._model.model.layers
        hooks = [
            layer.mlp.gate.register_forward_hook(functools.partial(_note, found, index))
            for index, layer in enumerate(layers)
            if hasattr(layer.mlp, "gate")
        ]
        tokens = torch.as_tensor(np.asarray(token_ids, np.int64))[None]
        with torch.no_grad():
            self._model(tokens, past_key_values=cache, use_cache=cache is not None)
        for hook in hooks:
            hook.remove()
        logits = np.zeros((len(token_ids), len(layers), self._model.config.num_experts), np.float32)
        for index, routed in found.items():
            logits[:, index] = routed
        return logits


def _note(found: dict[int, np.ndarray], index: int, gate: Any, inputs: Any, _: Any) -> None:
    hidden = inputs[0].reshape(-1, inputs[0].shape[-1])
    found[index] = (hidden.float() @ gate.weight.float().T).numpy()


_reference = functools.lru_cache(maxsize=2)(Reference)


def assert_rows_equal_the_reference(path, token_ids, experts):
    """Every recorded row names the experts that the reference forward picks."""
    reference = _reference(str(path)).experts(token_ids)[: len(experts)]
    wrong = (np.sort(experts, axis=-1) != reference).any(axis=-1)

    assert experts.shape == reference.shape
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} layer-rows differ: {np.argwhere(wrong)}"
