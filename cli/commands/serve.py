"""`routereplay serve`: run the route store."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from routereplay.cli.options import fail, require


def command(
    config: Annotated[
        Path | None,
        typer.Option(envvar="ROUTEREPLAY_CONFIG", help="TOML; its table [store] has settings."),
    ] = None,
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
    other: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, as in ttl_s=3600."),
    ] = None,
) -> None:
    """Run the route store. A flag wins over a ROUTEREPLAY_ variable, that over --config."""
    given: dict[str, Any] = {
        name: value
        for name, value in locals().items()
        if value is not None and name not in ("config", "other")
    }
    for text in other or ():
        name, equals, value = text.partition("=")
        if not equals:
            what = f"{text!r} sets nothing; expected NAME=VALUE, as in ttl_s=3600"
            raise typer.BadParameter(what, param_hint="--set")
        given[name.strip().lower()] = value
    if redis_url is not None and urlsplit(redis_url).password:
        what = (
            "whoever lists processes reads this password; put the URL into "
            "ROUTEREPLAY_REDIS_URL, or into a file that ROUTEREPLAY_REDIS_URL_FILE names"
        )
        raise typer.BadParameter(what, param_hint="--redis-url")
    packages = ("fastapi", "pydantic_settings", "redis", "uvicorn")
    require(dict.fromkeys(packages, "routereplay[sidecar]"))
    from pydantic import ValidationError

    from routereplay.sidecar.errors import BadConfigFile
    from routereplay.sidecar.server import serve
    from routereplay.sidecar.settings import CONFIG, Settings

    if config is not None:
        os.environ[CONFIG] = str(config)
    try:
        settings = Settings(**given)
    except BadConfigFile as error:
        fail(error.code, error.message, as_json=False)
    except ValidationError as error:
        for found in error.errors(include_input=False, include_context=False):
            name = "_".join(str(part) for part in found["loc"]).upper()
            what = found["msg"]
            if found["type"] == "extra_forbidden":
                known = [field.upper() for field in Settings.model_fields]
                close = difflib.get_close_matches(name, known, n=1)
                what = "no such setting" + (f"; did you mean {close[0].lower()}?" if close else "")
            typer.echo(f"ROUTEREPLAY_{name}: {what}", err=True)
        typer.echo("  See docs/operating.md#the-store, which lists every setting", err=True)
        raise typer.Exit(2) from error
    serve(settings)
