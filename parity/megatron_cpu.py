"""Run stock Megatron-Core without a GPU, for tests and parity on any machine.

Megatron-Core asks CUDA for things that a CPU run does not need: the current device, a
side stream, its random state. `megatron_on_cpu` answers those questions with the CPU's
own, for as long as it is open, and changes no arithmetic. What is answered, and where
it is asked (0.16.1; 0.19.2 asks the same):

- `torch.cuda.current_device`: `moe/router.py` moves its weights there
- streams and events: the alltoall token dispatcher overlaps copies on a side stream
- `device="cuda"` literals and `Tensor.cuda()`: rotary embedding, pipeline schedules
- CUDA's random state: `tensor_parallel/random.py` keeps it for checkpoints
- `te_general_gemm`: 0.16 names it without importing it if Transformer Engine is absent
- `maybe_move_tensor_to_cpu`: leaves a CPU tensor a tensor where splits must be numbers
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


@contextlib.contextmanager
def megatron_on_cpu() -> Iterator[None]:
    """Let Megatron-Core build and train models on the CPU inside; put everything back after.

    Not for a process that uses a GPU: inside, `device="cuda"` means the CPU.
    """
    with contextlib.ExitStack() as stack:
        for name, answer in _CUDA_ANSWERS.items():
            stack.enter_context(_swapped(torch.cuda, name, answer))
        stack.enter_context(_CudaMeansCpu())
        # Imported here: importing Megatron-Core asks some of the questions already.
        from megatron.core.tensor_parallel import random
        from megatron.core.transformer.moe import moe_utils, token_dispatcher

        stack.enter_context(_swapped(random, "_get_cuda_rng_state", _get_rng_state))
        stack.enter_context(_swapped(random, "_set_cuda_rng_state", _set_rng_state))
        if not hasattr(moe_utils, "te_general_gemm"):
            stack.enter_context(_swapped(moe_utils, "te_general_gemm", None))
        original = token_dispatcher.maybe_move_tensor_to_cpu

        def splits_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
            if as_numpy and torch.is_tensor(tensor) and not tensor.is_cuda:
                return tensor.detach().numpy()
            return original(tensor, as_numpy=as_numpy, record_stream=record_stream)

        stack.enter_context(_swapped(token_dispatcher, "maybe_move_tensor_to_cpu", splits_to_cpu))
        yield


@contextlib.contextmanager
def single_process_groups(seed: int = 1) -> Iterator[None]:
    """Open Megatron-Core's process groups for one process of world size 1, without a port."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(seed)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


class _Stream:
    """A stream on which everything is done already: a CPU has one queue."""

    device = _CPU

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def wait_stream(self, _stream: Any) -> None:
        """Return at once."""

    def wait_event(self, _event: Any) -> None:
        """Return at once."""

    def record_event(self, _event: Any = None) -> _Event:
        """Return an event that has passed."""
        return _Event()

    def synchronize(self) -> None:
        """Return at once."""


class _Event:
    """An event that has passed."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def record(self, *_args: Any) -> None:
        """Return at once."""

    def wait(self, *_args: Any) -> None:
        """Return at once."""

    def synchronize(self) -> None:
        """Return at once."""


class _CudaMeansCpu(TorchFunctionMode):
    """Reads `device="cuda"` and `.cuda()` as the CPU."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = _CPU
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.record_stream:
            return None
        return func(*args, **kwargs)


def _get_rng_state(*_args: Any, **_kwargs: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *_args: Any, **_kwargs: Any) -> None:
    torch.set_rng_state(state)


_CUDA_ANSWERS: dict[str, Any] = {
    "current_device": lambda: _CPU,
    "Stream": _Stream,
    "Event": _Event,
    "current_stream": lambda *_args, **_kwargs: _Stream(),
    "default_stream": lambda *_args, **_kwargs: _Stream(),
    "stream": lambda _stream: contextlib.nullcontext(),
    "synchronize": lambda *_args, **_kwargs: None,
    "get_rng_state": _get_rng_state,
    "set_rng_state": _set_rng_state,
    "manual_seed": lambda seed: torch.manual_seed(seed),
    "is_current_stream_capturing": lambda: False,
}

_ABSENT = object()


@contextlib.contextmanager
def _swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    previous = getattr(owner, name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if previous is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, previous)
