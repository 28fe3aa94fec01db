"""`routereplay bench`: how fast a store is from here."""

from __future__ import annotations

from typing import Annotated

import typer

from routereplay.cli.options import DEFAULT_STORE, AsJson, StoreUrl, print_json, told


def command(
    shape: Annotated[
        str, typer.Option(metavar="LAYERSxTOPKxEXPERTS", help="Of the model.")
    ] = "48x8x128",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of a record.")] = 2048,
    records: Annotated[int, typer.Option(min=1, help="Records that are sent.")] = 64,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Calls at a time.")] = 4,
    as_json: AsJson = False,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Send random records to a store, fetch, compare and delete them; tell how fast it was."""
    parts = shape.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        what = f"{shape!r} is no shape; expected LAYERSxTOPKxEXPERTS, as in 48x8x128"
        raise typer.BadParameter(what, param_hint="--shape")
    from routereplay.cli.columns import columns, nbytes
    from routereplay.cli.store_bench import Shape, bench

    layers, topk, experts = map(int, parts)
    with told(as_json):
        found = bench(store, Shape(layers, topk, experts, tokens, records, parallel))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            name,
            "-" if name == "delete" else f"{nbytes(phase['bytes_per_s'])}/s",
            f"{phase['p50_s'] * 1000:.1f} ms",
            f"{phase['p99_s'] * 1000:.1f} ms",
        )
        for name, phase in found.items()
    ]
    typer.echo(columns(("", "rate", "p50", "p99"), rows, right={1, 2, 3}))
    typer.echo(f"{records} records of {tokens} tokens, {parallel} calls at a time, from here")
