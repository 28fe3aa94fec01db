"""Look at the host library without changing anything."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

from routereplay.patches._patch import Function, Patch, Requirement
from routereplay.patches.errors import PatchSignatureDrift, PatchTargetMissing

MARK = "__routereplay_patch__"
"""Attribute of every function that the engine put in place: the name of its patch."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Where a patch goes and what is there now."""

    patch: Patch
    owner: Any
    """The class or module that the attribute is set on."""
    attribute: str
    raw: Any
    """The object in `vars()`: a function, `classmethod` or `staticmethod`."""
    inherited: bool

    @property
    def function(self) -> Function:
        """The plain function inside `raw`."""
        return self.raw.__func__ if isinstance(self.raw, classmethod | staticmethod) else self.raw

    def rewrap(self, function: Function) -> Any:
        """Return `function` in the kind of descriptor that `raw` is."""
        if isinstance(self.raw, classmethod | staticmethod):
            return type(self.raw)(function)
        return function


def resolve(target: str, asked_by: str) -> tuple[Any, str, Any, bool]:
    """Return `(owner, attribute, raw, inherited)` of `package.module:Class.method`.

    Raises:
        PatchTargetMissing: a part of the path does not exist or cannot be imported.
    """
    module_name, _, path = target.partition(":")
    try:
        owner: Any = importlib.import_module(module_name)
    except ImportError as error:
        msg = f"{asked_by}: module {module_name} cannot be imported ({error}); expected {target}"
        raise PatchTargetMissing(msg, target=target) from error
    *parents, attribute = path.split(".")
    for parent in parents:
        owner = inspect.getattr_static(owner, parent, None)
    raw = inspect.getattr_static(owner, attribute, None) if owner is not None else None
    if raw is None:
        msg = f"{asked_by}: {target} does not exist; {module_name} is there"
        raise PatchTargetMissing(msg, target=target)
    return owner, attribute, raw, attribute not in vars(owner)


def probe(patch: Patch) -> Probe:
    """Resolve one patch and check its signature.

    Raises:
        PatchTargetMissing: the target does not exist or is no function.
        PatchSignatureDrift: its leading parameters are not `patch.uses`.
    """
    found = Probe(patch, *resolve(patch.target, patch.name))
    if not inspect.isroutine(found.function):
        msg = f"{patch.name}: {patch.target} is a {type(found.raw).__name__}; expected a function"
        raise PatchTargetMissing(msg, target=patch.target)
    parameters = inspect.signature(found.function).parameters
    leading = tuple(parameters)[: len(patch.uses)]
    if leading != patch.uses:
        msg = (
            f"{patch.name}: {patch.target} takes ({', '.join(parameters)}); "
            f"expected leading parameters ({', '.join(patch.uses)})"
        )
        raise PatchSignatureDrift(msg, target=patch.target, found=list(parameters))
    return found


def check_requirement(requirement: Requirement) -> None:
    """Raise `PatchTargetMissing` unless the target has every name of the requirement."""
    asked_by = f"requirement ({requirement.reason})"
    _, _, raw, _ = resolve(requirement.target, asked_by)
    known = _names_of(raw)
    missing = [name for name in requirement.names if name not in known]
    if missing:
        msg = f"{asked_by}: {requirement.target} has no {', '.join(missing)}"
        raise PatchTargetMissing(msg, target=requirement.target, missing=missing)


def _names_of(raw: Any) -> set[str]:
    if not inspect.isclass(raw):
        return set(inspect.signature(raw).parameters)
    # Fields of a pydantic dataclass without a default are annotations only.
    annotated = {name for base in raw.__mro__ for name in vars(base).get("__annotations__", ())}
    return annotated | set(dir(raw))
