"""`routereplay serve`: run the route store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from routereplay.cli.options import require


def command(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks one.")] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            help="redis://, rediss://, redis+cluster:// or unix://; without it a Valkey is started."
        ),
    ] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help="API keys; `routereplay keys new` makes them.")
    ] = None,
    insecure_no_auth: Annotated[
        bool | None,
        typer.Option("--insecure-no-auth", help="Serve strangers too, without API keys."),
    ] = None,
    ssl_keyfile: Annotated[Path | None, typer.Option(help="Key of our certificate.")] = None,
    ssl_certfile: Annotated[Path | None, typer.Option(help="Our certificate.")] = None,
    ssl_ca_certs: Annotated[Path | None, typer.Option(help="Who signs clients.")] = None,
    ssl_cert_reqs: Annotated[
        int | None, typer.Option(help="Certificates of clients: 0 no, 1 optional, 2 required.")
    ] = None,
    enable_ssl_refresh: Annotated[
        bool | None,
        typer.Option(
            "--enable-ssl-refresh/--no-enable-ssl-refresh",
            help="Take up certificates that are replaced.",
        ),
    ] = None,
) -> None:
    """Run the route store. Every setting is also a ROUTEREPLAY_ variable."""
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    if redis_url is not None and urlsplit(redis_url).password:
        what = (
            "whoever lists processes reads this password; put the URL into "
            "ROUTEREPLAY_REDIS_URL, or into a file that ROUTEREPLAY_REDIS_URL_FILE names"
        )
        raise typer.BadParameter(what, param_hint="--redis-url")
    for package in ("fastapi", "pydantic_settings", "redis", "uvicorn"):
        require(package, "routereplay[sidecar]")
    from pydantic import ValidationError

    from routereplay.sidecar.server import serve
    from routereplay.sidecar.settings import Settings

    try:
        settings = Settings(**given)
    except ValidationError as error:
        for found in error.errors(include_input=False, include_context=False):
            name = "_".join(str(part) for part in found["loc"]).upper()
            typer.echo(f"ROUTEREPLAY_{name}: {found['msg']}", err=True)
        raise typer.Exit(2) from error
    serve(settings)
