"""The `routereplay` command: which subcommands there are."""

from __future__ import annotations

from typing import Annotated

import typer

from routereplay.cli.commands import (
    bench,
    demo,
    doctor,
    get,
    keys,
    ls,
    parity,
    serve,
    size,
    spool,
    trajectories,
)

app = typer.Typer(
    help="Rollout routing replay: the route store, and tools around it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order of a first day. A module here is a subcommand of its name.
for module in (
    serve,
    doctor,
    ls,
    trajectories,
    get,
    parity,
    size,
    bench,
    demo,
):
    app.command(module.__name__.rpartition(".")[2])(module.command)
app.add_typer(spool.app, name="spool")
app.add_typer(keys.app, name="keys")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"routereplay {version('routereplay')}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Rollout routing replay: the route store, and tools around it."""
