"""What subcommands share: options, how a result is printed, how an error is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

DEFAULT_STORE = "http://127.0.0.1:8400"

StoreUrl = Annotated[
    str, typer.Option("--store", envvar="ROUTEREPLAY_STORE_URL", help="Address of the store.")
]
Limit = Annotated[int, typer.Option("-n", "--limit", min=1, max=4096, help="Lines at most.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, errors too.")]

PAGE_OF_CODES = "docs/troubleshooting.md"

_WHAT_TO_DO = {
    "unreachable": "Is it running? `routereplay serve` starts one; --store says where it is.",
    "timeout": "It is there and slow: look at its /readyz, and at the engine behind it.",
    "pending": "Wait for it: --wait 30.",
    "not_found": "`routereplay ls` shows what this store has seen lately.",
    "expired": "Raise ROUTEREPLAY_TTL_S of the store, or fetch sooner.",
    "dropped": "docs/operating.md says what each reason means.",
    "store_full": "Raise the engine's memory, or lower ROUTEREPLAY_TTL_S of the store.",
    "unavailable": "`routereplay doctor` shows what is wrong with the engine.",
}


@contextmanager
def told(as_json: bool) -> Iterator[None]:
    """Print what is raised inside as one line (or JSON) with what to do, and exit with 1."""
    from routereplay.wire.errors import RouteReplayError

    try:
        yield
    except RouteReplayError as error:
        fail(error.code, error.message, as_json=as_json, **error.details)


def fail(code: str, message: str, *, as_json: bool, **details: Any) -> NoReturn:
    """Say what is wrong and what to do about it, and exit with 1."""
    advice = advice_for(code)
    if as_json:
        error = {"code": code, "message": message, "details": details, "advice": advice}
        print_json({"error": error})
    else:
        typer.echo(f"{code}: {message}", err=True)
        typer.echo(f"  {advice}", err=True)
    raise typer.Exit(1)


def advice_for(code: str) -> str:
    """Return what can be done about an error, and where it is explained."""
    return " ".join([*filter(None, [_WHAT_TO_DO.get(code)]), f"See {PAGE_OF_CODES}#{code}"])


def print_json(value: Any) -> None:
    """Print `value` as indented JSON."""
    typer.echo(json.dumps(value, indent=2))


def require(package: str, extra: str, *, as_json: bool = False) -> None:
    """Fail and say what to install if `package` cannot be imported."""
    from importlib.util import find_spec

    if find_spec(package) is None:
        message = f"this command needs {package}: pip install '{extra}'"
        fail("missing_package", message, as_json=as_json)
