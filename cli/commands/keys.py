"""`routereplay keys`: make, list and revoke the API keys of a store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from routereplay.cli.options import AsJson, fail, print_json, told

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

KeysFile = Annotated[
    Path,
    typer.Option("--file", "-f", envvar="ROUTEREPLAY_KEYS_FILE", help="The store's key file."),
]
DEFAULT_FILE = Path("routereplay-keys.json")


@app.command("new")
def new(
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", "-s", help="read, write or admin; repeat it."),
    ] = None,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Whose routes; others stay invisible.")
    ] = "default",
    days: Annotated[float | None, typer.Option(help="End of the key, in days from now.")] = None,
    note: Annotated[str, typer.Option(help="Who has it.")] = "",
    file: KeysFile = DEFAULT_FILE,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is printed once and cannot be read from the file again."""
    from routereplay.sidecar.auth.key_store import read_key_file, write_key_file
    from routereplay.sidecar.auth.keys import KeyFile, new_key
    from routereplay.sidecar.auth.principal import SCOPES

    asked = scope or ["read"]
    if unknown := set(asked) - set(SCOPES):
        what = f"{min(unknown)!r} is none of {', '.join(SCOPES)}"
        raise typer.BadParameter(what, param_hint="--scope")
    end = None if days is None else datetime.now(UTC) + timedelta(days=days)
    scopes = [known for known in SCOPES if known in asked]
    with told(as_json):
        made = new_key(scopes, namespace=namespace, not_after=end, note=note)
        held = read_key_file(file).keys if file.exists() else ()
        write_key_file(file, KeyFile(keys=(*held, made.key)))
    if as_json:
        print_json({"key": made.text, **_shown(made.key)})
    else:
        typer.echo(made.text)
        typer.echo(f"  added to {file}; a running store takes it up within 5 s.", err=True)


@app.command("ls")
def ls(file: KeysFile = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """List the keys of a file, without their secrets."""
    from routereplay.sidecar.auth.key_store import read_key_file

    with told(as_json):
        keys = read_key_file(file).keys
    if as_json:
        print_json({"keys": [_shown(key) for key in keys]})
        return
    for key in keys:
        end = "no end" if key.not_after is None else f"until {key.not_after:%Y-%m-%d %H:%M}"
        typer.echo(f"{key.id}  {','.join(key.scopes):<16} {key.namespace:<16} {end:<22} {key.note}")


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The middle part of a key.")],
    file: KeysFile = DEFAULT_FILE,
    as_json: AsJson = False,
) -> None:
    """Take a key out of the file; a running store refuses it within 5 s."""
    from routereplay.sidecar.auth.key_store import read_key_file, write_key_file
    from routereplay.sidecar.auth.keys import KeyFile

    with told(as_json):
        held = read_key_file(file).keys
        # Somebody may paste the whole key, which must not end up on the screen.
        wanted = key_id.split("_")[1] if key_id.startswith("rr_") else key_id
        left = tuple(key for key in held if key.id != wanted)
        if len(left) == len(held):
            fail("no_such_key", f"{file} has no key of this id", as_json=as_json)
        write_key_file(file, KeyFile(keys=left))
    if as_json:
        print_json({"revoked": wanted})
    else:
        typer.echo(f"{wanted} revoked")


def _shown(key: Any) -> dict[str, Any]:
    return {
        "id": key.id,
        "scopes": list(key.scopes),
        "namespace": key.namespace,
        "not_after": None if key.not_after is None else key.not_after.isoformat(),
        "note": key.note,
    }
