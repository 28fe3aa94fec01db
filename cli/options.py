"""What subcommands share: options, how a result is printed, how an error is told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
    "unreachable": "`routereplay serve` starts one; --store or ROUTEREPLAY_STORE_URL says where.",
    "timeout": "It is there and slow: look at its /readyz, and at the engine behind it.",
    "pending": "Wait for it: --wait 30.",
    "not_found": "`routereplay ls` shows what it has seen lately; a trajectory's id needs -t.",
    "expired": "Raise ROUTEREPLAY_TTL_S of the store, or fetch sooner.",
    "store_full": "Raise the engine's memory, or lower ROUTEREPLAY_TTL_S of the store.",
    "unauthenticated": "ROUTEREPLAY_API_KEY_FILE names the file that holds your key.",
    "forbidden": "`routereplay keys new --scope ...` makes a key that may do it.",
    "key_file_invalid": "`routereplay keys new --file ...` makes one.",
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
    tell(code, message, as_json=as_json, **details)
    raise typer.Exit(1)


def tell(code: str, message: str, *, as_json: bool, **details: Any) -> None:
    """Say what is wrong and what to do about it."""
    advice = advice_for(code)
    if as_json:
        error = {"code": code, "message": message, "details": details, "advice": advice}
        print_json({"error": error})
    else:
        typer.echo(f"{code}: {message}", err=True)
        typer.echo(f"  {advice}", err=True)


def advice_for(code: str) -> str:
    """Return what can be done about an error, and where it is explained."""
    return " ".join([*filter(None, [_WHAT_TO_DO.get(code)]), f"See {PAGE_OF_CODES}#{code}"])


def print_json(value: Any) -> None:
    """Print `value` as indented JSON."""
    typer.echo(json.dumps(value, indent=2))


def require(needed: Mapping[str, str], *, as_json: bool = False) -> None:
    """Fail and say what to install if a package cannot be imported.

    Args:
        needed: what to install, by the name that is imported.
        as_json: print JSON.
    """
    from importlib.util import find_spec

    missing = {name: what for name, what in needed.items() if find_spec(name) is None}
    if missing:
        wanted = " ".join(f"'{what}'" for what in dict.fromkeys(missing.values()))
        message = f"this command needs {', '.join(missing)}: pip install {wanted}"
        fail("missing_package", message, as_json=as_json)
