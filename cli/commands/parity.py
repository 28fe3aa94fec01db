"""`routereplay parity`: how far Megatron's scores are from what vLLM sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from routereplay.cli.options import AsJson, print_json, require, told


def command(
    checkpoint: Annotated[Path, typer.Argument(help="A Hugging Face checkpoint folder.")],
    prompts: Annotated[
        Path | None,
        typer.Option(help='Lines of text or JSON ("prompt", "turns", "messages").'),
    ] = None,
    trajectory: Annotated[
        list[str] | None,
        typer.Option("--trajectory", "-t", help="Score a stored one instead; may be repeated."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="Store of the trajectories, or of the server at --vllm."),
    ] = None,
    vllm: Annotated[
        str | None, typer.Option("--vllm", help="A running server instead of one of our own.")
    ] = None,
    served_name: Annotated[
        str, typer.Option("--served-name", help="The model's name at that server.")
    ] = "parity",
    topology: Annotated[
        list[str], typer.Option(help="Megatron's: 1, tp2, ep2, pp2, tp2-ep2-pp2; may be repeated.")
    ] = ["1"],  # noqa: B006 - typer wants the default itself
    device: Annotated[str, typer.Option(help="cpu or cuda; by itself what there is.")] = "",
    dtype: Annotated[str, typer.Option(help="Of both engines.")] = "bfloat16",
    megatron_dtype: Annotated[str, typer.Option(help="Of Megatron, if it differs.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Sampled in each turn.", min=1)] = 64,
    seeds: Annotated[int, typer.Option(help="Times that the prompts are sampled.", min=1)] = 1,
    vllm_args: Annotated[
        str, typer.Option("--vllm-args", help="Arguments for our vLLM server, in one string.")
    ] = "",
    timeout: Annotated[
        float, typer.Option(help="Seconds for each topology; then its ranks' stacks are shown.")
    ] = 600.0,
    max_pct: Annotated[
        float | None, typer.Option(help="Limit of mean_abs_pct; by default the family's.")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Limit of the top-20 KL; by default 0.002 nats.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with charts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sample with vLLM, score with Megatron, print how far they are apart.

    Columns: Megatron with replay off and on, and two noise floors: vLLM reading its own
    tokens again, and Megatron in another packing. Exits with 1 if replay is over a limit.
    A dense model has no routes: one column, Megatron, in the place of replay off and on.
    """
    needed = {
        **dict.fromkeys(("torch", "megatron"), "routereplay[megatron]"),
        "transformers": "transformers",
    }
    require(needed | ({} if vllm else {"vllm": "routereplay[vllm]"}), as_json=as_json)
    from routereplay.parity.command import Options, run

    say = (lambda _text: None) if as_json else (lambda text: typer.echo(text, err=True))
    options = Options(
        checkpoint=checkpoint,
        prompts=prompts,
        trajectories=tuple(trajectory or ()),
        store=store,
        vllm=vllm,
        served_name=served_name,
        topologies=tuple(topology),
        device=device,
        dtype=dtype,
        megatron_dtype=megatron_dtype or dtype,
        max_tokens=max_tokens,
        seeds=seeds,
        vllm_arguments=tuple(vllm_args.split()),
        timeout_s=timeout,
        max_pct=max_pct,
        max_kl=max_kl,
    )
    with told(as_json):
        try:
            facts, table = run(options, say)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    if html is not None:
        from routereplay.parity.page import render_page

        html.write_text(render_page(facts), encoding="utf-8")
    if as_json:
        print_json(facts)
    else:
        typer.echo(table)
        typer.echo("")
        for note in facts["notes"]:
            typer.echo(f"{note}\n")
        for line in facts["gates"]["exceeded"] or ["within the limits"]:
            typer.echo(line)
        if html is not None:
            typer.echo(f"report: {html}")
    raise typer.Exit(1 if facts["gates"]["exceeded"] else 0)
