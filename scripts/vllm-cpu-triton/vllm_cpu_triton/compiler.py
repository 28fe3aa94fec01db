"""The half of a backend that compiles."""

from __future__ import annotations

from typing import Any

from triton.backends.compiler import BaseBackend


class InterpretedBackend(BaseBackend):
    """Stands where a compiler would; the interpreter never asks it for anything."""

    @staticmethod
    def supports_target(target: Any) -> bool:
        """Whether this backend is the one for a target."""
        return bool(target.backend == "cpu")

    def hash(self) -> str:
        """Key of compiled kernels: there are none."""
        return "interpreted"

    def parse_options(self, options: Any) -> Any:
        """Options of a launch; the interpreter needs none."""
        return options

    def get_module_map(self) -> dict[str, Any]:
        """Device libraries: none."""
        return {}

    def _refuse(self, *_: Any, **__: Any) -> Any:
        msg = "this backend compiles nothing: set TRITON_INTERPRET=1"
        raise RuntimeError(msg)

    add_stages = load_dialects = _refuse
