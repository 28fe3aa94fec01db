"""`routereplay doctor`: what would stop a user here."""

from __future__ import annotations

import typer

from routereplay.cli.options import DEFAULT_STORE, AsJson, StoreUrl, print_json


def command(as_json: AsJson = False, store: StoreUrl = DEFAULT_STORE) -> None:
    """Check what is installed here: versions, whether each patch fits, the store."""
    from routereplay.cli.diagnosis import diagnose, render

    findings = diagnose(store)
    if as_json:
        print_json(findings)
    else:
        typer.echo(render(findings))
    raise typer.Exit(0 if findings["ok"] else 1)
