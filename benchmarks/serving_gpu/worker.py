"""vLLM's worker, able to draw its placeholder weights again: for `--worker-extension-cls`."""

from __future__ import annotations

from typing import Any


class Redraw:
    """Mixed into the worker by vLLM."""

    model_runner: Any

    def redraw_weights(self) -> None:
        """Give every parameter the values that `--load-format dummy` gave it at start."""
        from vllm.model_executor.model_loader.weight_utils import initialize_single_dummy_weight

        for parameter in self.model_runner.model.parameters():
            initialize_single_dummy_weight(parameter)
