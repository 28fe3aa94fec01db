"""What a check of `routereplay doctor` says, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """Stable name, for scripts."""
    state: State
    text: str
    do: str = ""
    """What the user can do, unless it is ok."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return asdict(self)


def ok(check: str, text: str) -> Finding:
    """Nothing is wrong."""
    return Finding(check, "ok", text)


def warning(check: str, text: str, do: str) -> Finding:
    """It works, and something will surprise somebody."""
    return Finding(check, "warning", text, do)


def failed(check: str, text: str, do: str) -> Finding:
    """It will not work."""
    return Finding(check, "failed", text, do)


def render(findings: Sequence[Finding]) -> str:
    """Return the findings as text, one or two lines each."""
    width = max((len(found.check) for found in findings), default=0)
    lines = []
    for found in findings:
        lines.append(f"{found.state:<8}{found.check:<{width}}  {found.text}")
        if found.do:
            lines.append(f"{'':<8}{'':<{width}}  -> {found.do}")
    return "\n".join(lines)
