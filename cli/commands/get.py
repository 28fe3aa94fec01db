"""`routereplay get`: routes as a table, JSON, arrays or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from routereplay.cli.options import DEFAULT_STORE, AsJson, StoreUrl, fail, print_json, told

if TYPE_CHECKING:
    from routereplay.wire.routes import RoutedExperts

_KINDS = (".npz", ".safetensors", ".png")


def command(
    item_ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Request or trajectory ids.")
    ],
    trajectory: Annotated[
        bool, typer.Option("--trajectory", "-t", help="The ids are trajectories.")
    ] = False,
    choice: Annotated[int, typer.Option(help="Index of the choice, if n > 1.")] = 0,
    layers: Annotated[str, typer.Option(metavar="A:B", help="Only these decoder layers.")] = ":",
    tokens: Annotated[str, typer.Option(metavar="A:B", help="Only these positions.")] = ":",
    wait: Annotated[float, typer.Option(help="Seconds to wait for what is not sealed.")] = 0.0,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write .npz, .safetensors, or a heat map as .png."),
    ] = None,
    as_json: AsJson = False,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Fetch routes: print how they fall on the experts, or save them."""
    if output is not None and output.suffix not in _KINDS:
        what = f"{output.name} ends in none of {', '.join(_KINDS)}"
        raise typer.BadParameter(what, param_hint="--output")
    layers_asked = _range("--layers", layers, last=None)
    # The store cuts it to what there is.
    tokens_asked = _range("--tokens", tokens, last=1 << 29)
    from tqdm.auto import tqdm

    from routereplay.cli import show
    from routereplay.client import RouteStoreClient

    turns: list[RoutedExperts] = []
    # A bar for people at a terminal who wait for more than one.
    bar = tqdm(item_ids, unit="id", disable=None if len(item_ids) > 1 else True)
    with told(as_json), RouteStoreClient(store) as client:
        for item_id in bar:
            if trajectory:
                found = client.fetch_trajectory(
                    item_id, layers=layers_asked, tokens=tokens_asked, wait_s=wait
                )
                turns += found.turns
            else:
                turns.append(
                    client.fetch_request(
                        item_id,
                        choice=choice,
                        layers=layers_asked,
                        tokens=tokens_asked,
                        wait_s=wait,
                    )
                )
    if output is None:
        if as_json:
            print_json({"records": [show.describe(turn) for turn in turns]})
        else:
            show.print_turns(turns)
        return
    try:
        show.save(output, turns)
    except ModuleNotFoundError as error:
        message = f"writing {output.suffix} needs {error.name}: pip install {error.name}"
        fail("missing_package", message, as_json=as_json)
    except OSError as error:
        message = f"{output} cannot be written: {error.strerror}"
        fail("output", message, as_json=as_json)
    if as_json:
        print_json({"output": str(output), "records": len(turns)})
    else:
        typer.echo(f"{len(turns)} records written to {output}")


def _range(option: str, text: str, last: int | None) -> range | None:
    """Return `A:B` as a range; an open end is `last`, or an error if that is None."""
    start, colon, stop = text.partition(":")
    if (start, colon, stop) == ("", ":", ""):
        return None
    end = int(stop) if stop.isdecimal() else last if stop == "" else None
    if not colon or not (start or "0").isdecimal() or end is None:
        ends = "0:24" if last is None else "0:24 or 12:"
        what = f"{text!r} is no range; expected whole numbers, as in {ends}"
        raise typer.BadParameter(what, param_hint=option)
    return range(int(start or 0), end)
