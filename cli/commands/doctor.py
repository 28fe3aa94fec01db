"""`routereplay doctor`: what would stop a user here."""

from __future__ import annotations

from typing import Annotated

import typer

from routereplay.cli.options import DEFAULT_STORE, AsJson, StoreUrl, print_json


def command(
    as_json: AsJson = False,
    store: StoreUrl = DEFAULT_STORE,
    server: Annotated[
        str | None, typer.Option(help="Address of a running vLLM server to look at.")
    ] = None,
    flags: Annotated[
        str,
        typer.Option(
            help="Flags of a `vllm serve`, as one argument; with `--config FILE`, the file's too."
        ),
    ] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail as well.")] = False,
) -> None:
    """Check this machine: versions, each patch, flags, the store, its clock, the disk.

    Status 0: nothing failed. 1: something did, or with --strict was warned of.
    """
    from routereplay.cli.diagnosis import as_data, diagnose
    from routereplay.cli.findings import render

    findings = diagnose(store, server, flags)
    if as_json:
        print_json(as_data(findings))
    else:
        typer.echo(render(findings))
    bad = {"failed", "warning"} if strict else {"failed"}
    raise typer.Exit(1 if any(found.state in bad for found in findings) else 0)
