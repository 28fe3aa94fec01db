"""What a patch is: rows of data. The engine applies them, documents are made from them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

Function: TypeAlias = Callable[..., Any]

_RELEASE = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Patch:
    """One wrapped function of the host library.

    The wrapper passes on whatever it does not use, so only the leading parameters named
    in `uses` must stay what they are; hosts add trailing ones between releases.
    """

    name: str
    """Stable name, for logs and documents."""
    target: str
    """`package.module:Class.method` or `package.module:function`."""
    uses: tuple[str, ...]
    """Leading parameters that the wrapper relies on, `self` included."""
    wrapper: Callable[[Function], Function]
    """Takes the original function and returns the one to put in its place."""
    reason: str
    remove_when: str


@dataclass(frozen=True, slots=True)
class Requirement:
    """Names that the wrappers read from a class, or parameters of a function, of the host."""

    target: str
    """`package.module:Class` (fields and attributes) or `...:Class.method` (parameters)."""
    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Library:
    """The host library and the releases that the patches were proven on."""

    name: str
    version: str
    """As installed."""
    first: tuple[int, int]
    """Oldest supported `(major, minor)`."""
    before: tuple[int, int]
    """First unsupported `(major, minor)`."""

    @property
    def supported(self) -> str:
        """The range as a requirement: `>=0.30,<0.31`."""
        return ">={}.{},<{}.{}".format(*self.first, *self.before)

    @property
    def is_supported(self) -> bool:
        """Whether the installed release is in the range."""
        match = _RELEASE.match(self.version)
        if match is None:
            return False
        return self.first <= (int(match[1]), int(match[2])) < self.before


@dataclass(frozen=True, slots=True)
class AppliedPatch:
    """One row of a report."""

    name: str
    target: str
    inherited: bool
    """The target was inherited; reverting deletes the attribute again."""


@dataclass(frozen=True, slots=True)
class PatchReport:
    """What was applied, where; `to_dict()` is JSON-able."""

    library: str
    version: str
    supported: str
    pid: int
    patches: tuple[AppliedPatch, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain dicts and lists."""
        return {**asdict(self), "patches": [asdict(patch) for patch in self.patches]}
