"""The whole path from one command: record, seal, fetch, stitch, pack, replay, compare."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from end_to_end.agent import STYLES, Agent, Episode
from routereplay.parity.store_server import RouteStore
from routereplay.parity.vllm_server import VllmServer

FOLDER = Path(".demo")


def main() -> dict[str, Any]:
    """Run the demo; return how far the engines were apart, JSON-able."""
    arguments = _arguments()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    # The hosts' hints about GPUs and accelerated kernels that a laptop does not have.
    warnings.simplefilter("ignore")
    # Whoever ends us, by whatever signal, ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        with _stage("checkpoint", "a tiny Qwen3-MoE: 4 layers (the first dense), top 4 of 16"):
            from transformers.utils.logging import disable_progress_bar

            from routereplay.parity.tiny_moe import write_tiny_moe

            disable_progress_bar()
            checkpoint = write_tiny_moe(FOLDER / "checkpoint")
        store = RouteStore(FOLDER / "store.log")
        with _stage("store", "routereplay serve, with an embedded Valkey"):
            stack.enter_context(store)
        _say(f"{store.base_url}, process {store.pid}")
        server = VllmServer(
            checkpoint,
            dtype="bfloat16",
            log_path=FOLDER / "vllm.log",
            environment={"ROUTEREPLAY_STORE_URL": store.base_url},
        )
        with _stage("vLLM", "the stock server, CPU build, in bfloat16; up to a minute or two"):
            stack.enter_context(server)
        _say(f"{server.base_url}, process {server.pid}, ROUTEREPLAY_STORE_URL={store.base_url}")
        episodes = _play(server, checkpoint)
        _show_request(store.base_url, episodes[1].request_ids[-1])
        found = _train(store.base_url, checkpoint, episodes)
        seconds = time.monotonic() - begin
        _say_farewell(store.base_url, seconds)
        if arguments.keep:
            _wait_for_interrupt(store.base_url, server.base_url)
    return {"seconds": seconds, **found}


def _play(server: VllmServer, checkpoint: Path) -> list[Episode]:
    from transformers import AutoTokenizer

    _title("agent", "4 trajectories of 3 turns through the plain openai client")
    agent = Agent(server.base_url, AutoTokenizer.from_pretrained(checkpoint))
    episodes = []
    for number, (style, text) in enumerate(STYLES.items()):
        for turn, episode in enumerate(agent.play(f"demo-{number}", style), start=1):
            _say(f"demo-{number} turn {turn}: {len(episode.token_ids):>3} tokens  ({text})")
        episodes.append(episode)
    return episodes


def _show_request(store_url: str, request_id: str) -> None:
    _title("store", "what curl sees of one request")
    url = f"{store_url}/v1/requests/{request_id}/routes?wait=10&format=json&tokens=0:2"
    _say(f"$ curl '{url}'")
    if shutil.which("curl"):
        command = ["curl", "--silent", "--show-error", "--noproxy", "*", url]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        import httpx

        answer = httpx.get(url, trust_env=False, timeout=30).text
    _say(answer if len(answer) < 700 else f"{answer[:700]} ...")


def _train(store_url: str, checkpoint: Path, episodes: list[Episode]) -> dict[str, Any]:
    with _stage("Megatron", "import stock Megatron-Core; let it run without a GPU"):
        from end_to_end import batch as batches
        from end_to_end import trainer
        from routereplay.client import ModelShape
        from routereplay.parity.comparison import render
        from routereplay.parity.megatron_cpu import megatron_on_cpu, single_process_groups
    _title("fetch", "the routes of all trajectories, one frame for a batch of them")
    trajectories = batches.fetch(store_url, episodes, progress=True)
    for trajectory in trajectories:
        rows = sum(len(turn.experts) for turn in trajectory.turns)
        _say(f"{trajectory.trajectory_id}: {len(trajectory.turns)} records, {rows} rows")
    with _stage("pack", "one THD row; every token compared with what vLLM saw"):
        batch = batches.pack(episodes, trajectories, ModelShape(4, 4, 16))
    recorded = int((~batch.routes.live).sum())
    _say(
        f"{batch.routes.num_tokens} tokens: {recorded} with the experts of vLLM, "
        f"{batch.routes.num_tokens - recorded} live (the last of each sequence)"
    )
    with (
        _stage("replay", "score with live routing, then replay forward and backward"),
        megatron_on_cpu(),
        single_process_groups(),
    ):
        result = trainer.train(checkpoint, batch)
    _say(
        f"{result.router_calls} router calls replayed, loss {result.loss:.4f}, "
        f"router gradient norm {result.router_gradient_norm:.4f}"
    )
    _title("parity", "Megatron in float32 against vLLM in bfloat16")
    _say(f"over the {len(batch.sampled.logprobs)} sampled tokens and {recorded} recorded rows\n")
    print(render({"replay off": result.off, "replay on": result.on}))
    print()
    _say("Both engines read the same weights; one computes in bfloat16, the other in float32.")
    _say("That is all that differs here, and enough for the routers to disagree.")
    return {"off": asdict(result.off), "on": asdict(result.on)}


def _say_farewell(store_url: str, seconds: float) -> None:
    _title("done", f"{seconds:.0f} s")
    _say("next: ./scripts/demo --keep leaves both servers up; then")
    _say(f"      {store_url}/ in a browser, {store_url}/docs for the interface,")
    _say("      .venv/bin/routereplay get --trajectory demo-0 --store <the store's address>")
    _say("      docs/quickstart.md: the same with your own model")


def _wait_for_interrupt(store_url: str, server_url: str) -> None:
    _say(f"store {store_url}, vLLM {server_url}; Ctrl-C ends both")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


def _title(name: str, text: str) -> None:
    print(f"\n[{name}] {text}", flush=True)


def _say(text: str) -> None:
    print(f"    {text}", flush=True)


@contextlib.contextmanager
def _stage(name: str, text: str) -> Iterator[None]:
    _title(name, text)
    begin = time.monotonic()
    yield
    _say(f"{time.monotonic() - begin:.1f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the servers up at the end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
