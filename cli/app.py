"""`routereplay serve | get | doctor`. Each command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from routereplay.wire.errors import RouteReplayError

app = typer.Typer(
    help="Rollout routing replay: the route store, and tools around it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

StoreUrl = Annotated[
    str, typer.Option("--store", envvar="ROUTEREPLAY_STORE_URL", help="Address of the store.")
]
DEFAULT_STORE = "http://127.0.0.1:8400"


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(help="redis://, rediss:// or unix://; without it a Valkey is started."),
    ] = None,
) -> None:
    """Run the route store. Every setting is also a ROUTEREPLAY_ variable."""
    try:
        from routereplay.sidecar.server import serve as run_store
        from routereplay.sidecar.settings import Settings
    except ModuleNotFoundError as error:
        missing = f"{error.name} is missing: pip install 'routereplay[sidecar]'"
        raise typer.BadParameter(missing) from error
    given: dict[str, Any] = {"host": host, "port": port, "redis_url": redis_url}
    run_store(Settings(**{name: value for name, value in given.items() if value is not None}))


@app.command()
def get(
    item_id: Annotated[str, typer.Argument(metavar="ID", help="A request or trajectory id.")],
    trajectory: Annotated[bool, typer.Option("--trajectory", help="ID is a trajectory.")] = False,
    choice: Annotated[int, typer.Option(help="Index of the choice, if n > 1.")] = 0,
    wait: Annotated[float, typer.Option(help="Seconds to wait for what is not sealed.")] = 0.0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write .npz instead of a summary.")
    ] = None,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Fetch routes: print what is there, or save it."""
    from routereplay.cli.show import save, summarize
    from routereplay.client import RouteStoreClient

    try:
        with RouteStoreClient(store) as client:
            if trajectory:
                turns = client.fetch_trajectory(item_id, wait_s=wait).turns
            else:
                turns = (client.fetch_request(item_id, choice=choice, wait_s=wait),)
    except RouteReplayError as error:
        typer.echo(f"{error.code}: {error.message}", err=True)
        raise typer.Exit(1) from error
    if output:
        save(output, turns)
        typer.echo(f"{len(turns)} records written to {output}")
    else:
        typer.echo(summarize(turns))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Check what is installed here: versions, whether each patch fits, the store."""
    import json

    from routereplay.cli.diagnosis import diagnose, render

    findings = diagnose(store)
    typer.echo(json.dumps(findings, indent=2) if as_json else render(findings))
    raise typer.Exit(0 if findings["ok"] else 1)
