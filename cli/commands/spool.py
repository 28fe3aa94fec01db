"""`routereplay spool`: what recorders left on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from routereplay.cli.options import DEFAULT_STORE, StoreUrl

if TYPE_CHECKING:
    from routereplay.patches.vllm.spool_file import SpoolFile

app = typer.Typer(help="What recorders keep on disk.", no_args_is_help=True)

Root = Annotated[
    Path, typer.Option("--dir", envvar="ROUTEREPLAY_SPOOL_DIR", help="Root of the spool.")
]


@app.command("ls")
def list_folders(root: Root) -> None:
    """List the folders, whether a live process holds them, and what waits in them."""
    from routereplay.patches.vllm.spool_folder import Folder

    for path in _folders(root):
        folder = Folder.claim(path)
        files = list(_files(path))
        rows, nbytes = sum(file.rows for file in files), sum(file.size for file in files)
        age = f", {time.time() - files[0].modified_at:.0f} s old" if files else ""
        owner = "of a dead process" if folder is not None else "in use"
        typer.echo(f"{path.name}  {owner}: {len(files)} files, {rows} rows, {nbytes} bytes{age}")
        if folder is not None:
            folder.leave()


@app.command()
def verify(root: Root) -> None:
    """Read every file and compare every digest; changes nothing."""
    from routereplay.patches.vllm.spool_file import read_file

    damaged = 0
    for path in _folders(root):
        for file in _files(path):
            contents = read_file(file.path)
            if not contents.whole:
                damaged += 1
                typer.echo(f"{file.path}: damaged, {len(contents.frames)} frames are whole")
    typer.echo(f"{damaged} damaged files")
    raise typer.Exit(1 if damaged else 0)


@app.command()
def push(
    root: Root,
    store: StoreUrl = DEFAULT_STORE,
    timeout: Annotated[float, typer.Option(help="Seconds to try.")] = 60.0,
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
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and not exporter.is_drained:
        time.sleep(0.05)
    exporter.close()
    stats = exporter.stats()
    left, lost = stats.spooled.rows, sum(amount.rows for amount in stats.dropped.values())
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
