"""The tensors of a Hugging Face checkpoint folder, read one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from routereplay.parity.errors import ConversionError


class CheckpointTensors:
    """Tensors by name, from files that stay open inside `with`.

    Args:
        files: of each name, the file that it lies in; see `tensor_files`.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> CheckpointTensors:
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.clear()  # safetensors unmaps a file when its handle is dropped.

    def read(self, name: str, expert: int | None = None) -> torch.Tensor:
        """Return a tensor, or the part of one expert of a tensor that holds all of them."""
        path = self._files[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        file = self._open[path]
        return file.get_tensor(name) if expert is None else file.get_slice(name)[expert]


def tensor_files(path: Path) -> dict[str, Path]:
    """Return of each tensor of the checkpoint folder `path` the file that it lies in.

    Raises:
        ConversionError: the folder holds no safetensors.
    """
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
