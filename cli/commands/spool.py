"""`routereplay spool`: what recorders left on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from routereplay.cli.options import DEFAULT_STORE, AsJson, StoreUrl, print_json

if TYPE_CHECKING:
    from routereplay.patches.vllm.spool_file import SpoolFile

app = typer.Typer(help="What recorders keep on disk.", no_args_is_help=True)

Root = Annotated[
    Path, typer.Option("--dir", envvar="ROUTEREPLAY_SPOOL_DIR", help="Root of the spool.")
]


@app.command("ls")
def list_folders(root: Root, as_json: AsJson = False) -> None:
    """List the folders, whether a live process holds them, and what waits in them."""
    from routereplay.patches.vllm.spool_folder import Folder

    found = []
    for path in _folders(root):
        folder = Folder.claim(path)
        files = list(_files(path))
        found.append(
            {
                "folder": path.name,
                "in_use": folder is None,
                "files": len(files),
                "rows": sum(file.rows for file in files),
                "bytes": sum(file.size for file in files),
                "oldest_s": time.time() - files[0].modified_at if files else None,
            }
        )
        if folder is not None:
            folder.leave()
    if as_json:
        print_json({"folders": found})
        return
    for one in found:
        age = "" if one["oldest_s"] is None else f", {one['oldest_s']:.0f} s old"
        owner = "in use" if one["in_use"] else "of a dead process"
        held = f"{one['files']} files, {one['rows']} rows, {one['bytes']} bytes"
        typer.echo(f"{one['folder']}  {owner}: {held}{age}")


@app.command()
def verify(root: Root, as_json: AsJson = False) -> None:
    """Read every file and compare every digest; changes nothing."""
    from tqdm.auto import tqdm

    from routereplay.patches.vllm.spool_file import read_file

    files = [file.path for path in _folders(root) for file in _files(path)]
    damaged: list[dict[str, Any]] = []
    for path in tqdm(files, "verify", unit="file", disable=None):
        contents = read_file(path)
        if not contents.whole:
            damaged.append({"file": str(path), "whole_frames": len(contents.frames)})
    if as_json:
        print_json({"files": len(files), "damaged": damaged})
    else:
        for one in damaged:
            typer.echo(f"{one['file']}: damaged, {one['whole_frames']} frames are whole")
        typer.echo(f"{len(damaged)} damaged files")
    raise typer.Exit(1 if damaged else 0)


@app.command()
def push(
    root: Root,
    store: StoreUrl = DEFAULT_STORE,
    timeout: Annotated[float, typer.Option(help="Seconds to try.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Send what dead processes left for this store, without starting vLLM."""
    import os

    from routereplay.patches.vllm.exporter import Exporter
    from routereplay.patches.vllm.settings import Settings

    given = {"ROUTEREPLAY_STORE_URL": store, "ROUTEREPLAY_SPOOL_DIR": str(root)}
    try:
        exporter = Exporter(Settings.from_env({**os.environ, **given}))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    from tqdm.auto import tqdm

    deadline = time.monotonic() + timeout
    with tqdm(desc="push", unit="row", disable=None) as bar:
        while time.monotonic() < deadline and not exporter.is_drained:
            time.sleep(0.05)
            bar.update(exporter.stats().acked.rows - bar.n)
    exporter.close()
    stats = exporter.stats()
    left, lost = stats.spooled.rows, sum(amount.rows for amount in stats.dropped.values())
    if as_json:
        print_json({"stored_rows": stats.acked.rows, "waiting_rows": left, "lost_rows": lost})
    else:
        typer.echo(f"{stats.acked.rows} rows are in the store, {left} still wait, {lost} are lost")
    raise typer.Exit(1 if left or lost else 0)


def _folders(root: Path) -> list[Path]:
    from routereplay.patches.vllm.spool_folder import folders

    if not root.is_dir():
        msg = f"{root} is no folder"
        raise typer.BadParameter(msg)
    return list(folders(root))


def _files(path: Path) -> Iterator[SpoolFile]:
    from routereplay.patches.vllm.spool_file import SpoolFile

    for entry in sorted(path.iterdir()):
        file = SpoolFile.at(entry, adopted=True)
        if file is not None:
            yield file
