"""`routereplay serve`: run the route store."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from routereplay.cli.options import require


def command(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks one.")] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(help="redis://, rediss:// or unix://; without it a Valkey is started."),
    ] = None,
) -> None:
    """Run the route store. Every setting is also a ROUTEREPLAY_ variable."""
    for package in ("fastapi", "pydantic_settings", "redis", "uvicorn"):
        require(package, "routereplay[sidecar]")
    from routereplay.sidecar.server import serve
    from routereplay.sidecar.settings import Settings

    given: dict[str, Any] = {"host": host, "port": port, "redis_url": redis_url}
    serve(Settings(**{name: value for name, value in given.items() if value is not None}))
