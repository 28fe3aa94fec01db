"""The CPU builds of vLLM 0.22 to 0.29 do not capture routes; with this they do. Tests only.

Their kernel of a mixture of experts picks the experts itself and tells nobody. Here it tells
the hook that the engine has put into the layer's router (up to 0.26) or into the kernel. Without
it builds up to 0.26 are the silent failure that the canary must stop: rows of the right shape,
all zero. Later ones refuse to start.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_LAYERS = "vllm.model_executor.layers.fused_moe"


def register() -> None:
    """Entry point of `vllm.general_plugins`; runs in every process of vLLM."""
    if os.environ.get("VLLM_CPU_CAPTURE", "1") == "0":
        return
    for name, change in _CHANGES.items():
        if name in sys.modules:
            change(sys.modules[name])
        elif not any(getattr(finder, "name", None) == name for finder in sys.meta_path):
            sys.meta_path.insert(0, _AfterImport(name))


class _AfterImport(MetaPathFinder):
    """Changes a kernel's module when it has been imported."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, Loader):
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _CHANGES[name](module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _tell_the_router(kernel: ModuleType) -> None:
    runner = importlib.import_module(f"{_LAYERS}.runner.moe_runner").MoERunner
    current: list[Any] = []
    apply, select = runner._apply_quant_method, kernel.select_experts

    @functools.wraps(apply)
    def _apply_quant_method(self: Any, *args: Any, **kwargs: Any) -> Any:
        current[:] = [self.router]
        return apply(self, *args, **kwargs)

    @functools.wraps(select)
    def select_experts(*args: Any, **kwargs: Any) -> Any:
        weights, ids = select(*args, **kwargs)
        if current and current[0].capture_fn is not None:
            current[0].capture_fn(ids)
        return weights, ids

    runner._apply_quant_method = _apply_quant_method
    kernel.select_experts = select_experts


def _tell_the_kernel(kernels: ModuleType) -> None:
    kind = getattr(kernels, "CPUUnquantizedExperts", None)
    select = getattr(kind, "_select_experts", None)
    if select is None:  # Up to 0.27: its experts are picked in the other module.
        return

    @functools.wraps(select)
    def _select_experts(self: Any, *args: Any, **kwargs: Any) -> Any:
        weights, ids = select(self, *args, **kwargs)
        if self.routing_replay_capture_fn is not None:
            self.routing_replay_capture_fn(ids)
        return weights, ids

    kind._select_experts = _select_experts
    kind.supports_routing_replay_capture = lambda self: True


_CHANGES = {
    f"{_LAYERS}.cpu_fused_moe": _tell_the_router,
    f"{_LAYERS}.experts.cpu_moe": _tell_the_kernel,
}
"""What to do to which module: to the first up to 0.26, to the second in 0.28 and 0.29."""
