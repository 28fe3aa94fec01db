"""`routereplay size`: what routes of a model cost, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from routereplay.cli.options import AsJson, fail, print_json, told


def command(
    model: Annotated[
        str, typer.Argument(help="A Hugging Face folder or config.json, or LAYERSxTOPKxEXPERTS.")
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a trajectory at its end.")] = 32768,
    trajectories: Annotated[int, typer.Option(min=1, help="Trajectories of a step.")] = 512,
    tokens_per_s: Annotated[
        float, typer.Option(min=0, help="Tokens that all servers compute in a second.")
    ] = 20000.0,
    ttl: Annotated[int, typer.Option(min=1, help="Seconds that the store keeps them.")] = 14400,
    as_json: AsJson = False,
) -> None:
    """Tell bytes a token, a trajectory and a step; the store's memory and its traffic."""
    shape = _shape(model, as_json)
    layers, topk, experts = shape
    itemsize = 1 if experts <= 256 else 2
    token_bytes = layers * topk * itemsize
    # Token ids, int32, are stored beside the rows.
    stored_bytes = token_bytes + 4
    sizes = {
        "num_layers": layers,
        "topk": topk,
        "num_experts": experts,
        "dtype": "uint8" if itemsize == 1 else "uint16",
        "bytes_per_token": token_bytes,
        "bytes_per_trajectory": stored_bytes * tokens,
        "bytes_per_step": stored_bytes * tokens * trajectories,
        "ingest_bytes_per_s": stored_bytes * tokens_per_s,
        "store_bytes": stored_bytes * tokens_per_s * ttl,
    }
    if as_json:
        print_json(sizes)
        return
    from routereplay.cli.columns import nbytes

    typer.echo(
        f"{layers} layers, top {topk} of {experts} experts, {sizes['dtype']}\n"
        f"  a token        {token_bytes} B\n"
        f"  a trajectory   {nbytes(stored_bytes * tokens)} ({tokens} tokens, each once)\n"
        f"  a step         {nbytes(stored_bytes * tokens * trajectories)} "
        f"({trajectories} trajectories)\n"
        f"  ingest         {nbytes(stored_bytes * tokens_per_s)}/s "
        f"at {tokens_per_s:g} tokens/s of all servers\n"
        f"  the store      {nbytes(stored_bytes * tokens_per_s * ttl)} "
        f"if each is kept {ttl} s; fetch sooner and delete, or lower ROUTEREPLAY_TTL_S"
    )


def _shape(model: str, as_json: bool) -> tuple[int, int, int]:
    parts = model.split("x")
    if len(parts) == 3 and all(part.isdecimal() and int(part) for part in parts):
        return int(parts[0]), int(parts[1]), int(parts[2])
    import json

    from routereplay.patches.models.reading import routed_model

    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    config: dict[str, Any] = {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"{path} is no config.json that can be read ({error}); or give LAYERSxTOPKxEXPERTS"
        fail("model", what, as_json=as_json)
    with told(as_json):
        found = routed_model(config)
        return found.num_layers, found.topk, found.num_experts
