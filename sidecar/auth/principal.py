"""Who asks, and what that one may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Scope: TypeAlias = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a key; `key_id` is what logs and limits know it by."""

    key_id: str
    namespace: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Tell whether it may do what `scope` allows; `admin` allows everything."""
        return scope in self.scopes or "admin" in self.scopes


ANYONE = Principal("anyone", DEFAULT_NAMESPACE, frozenset(SCOPES))
"""Every caller of a store that has no key file."""
