"""The half of a backend that launches."""

from __future__ import annotations

import os
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class InterpretedDriver(DriverBase):
    """Active only while kernels are interpreted."""

    @classmethod
    def is_active(cls) -> bool:
        """Whether this driver is the machine's."""
        return os.environ.get("TRITON_INTERPRET") == "1"

    def get_current_target(self) -> GPUTarget:
        """The CPU."""
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> torch.device:
        """Where tensors live."""
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        """PyTorch's module for the device."""
        return torch.cpu

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Of launchers that are compiled: there are none."""
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        """Nothing is tuned."""
        raise NotImplementedError
