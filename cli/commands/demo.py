"""`routereplay demo`: the whole path on this machine, with a tiny model."""

from __future__ import annotations

from typing import Annotated

import typer

from routereplay.cli.options import AsJson, print_json, require


def command(
    keep: Annotated[bool, typer.Option(help="Leave the servers up at the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Record with vLLM, store, replay in Megatron: a tiny model, a minute or two on a CPU."""
    require(
        {
            "vllm": "routereplay[vllm]",
            "megatron": "routereplay[megatron]",
            "fastapi": "routereplay[sidecar]",
            "openai": "openai",
        },
        as_json=as_json,
    )
    import contextlib
    import importlib
    import sys
    from pathlib import Path

    import routereplay.cli

    # The examples stand beside the houses, in the wheel and in a checkout alike.
    (cli,) = routereplay.cli.__path__
    sys.path.insert(0, str(Path(cli).parent / "examples"))
    run = importlib.import_module("end_to_end.run")
    sys.argv[1:] = ["--keep"] if keep else []
    if not as_json:
        run.main()
        return
    with contextlib.redirect_stdout(sys.stderr):
        found = run.main()
    print_json(found)
