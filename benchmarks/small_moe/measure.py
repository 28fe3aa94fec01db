"""How far Megatron's scores are from vLLM's samples, replay off and on: seeds, models, layouts.

    python benchmarks/small_moe/measure.py --model trained=OUT --prompts OUT/held_out.jsonl
    python benchmarks/small_moe/measure.py --device cpu --count 4 --seeds 2 --model ...

The real path for each model: a route store of its own, the stock vLLM server with the
recorder, trajectories of several turns, fetch, stitch, pack, Megatron-Core. Both engines
compute in bfloat16. `--out` is written after each topology, so that a run cut short leaves
what it found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from routereplay.client import RouteStoreClient
from routereplay.parity.hf_config import read_hf_config
from routereplay.parity.measurement import Measured
from routereplay.parity.prompts import encode_prompts, read_prompts
from routereplay.parity.report import facts_of
from routereplay.parity.rollout import Engine
from routereplay.parity.sampling import sample
from routereplay.parity.store_server import RouteStore
from routereplay.parity.topology import Topology
from routereplay.parity.vllm_server import API_SERVER, SERVE, VllmServer
from routereplay.wire.errors import RouteReplayError


def run(name: str, checkpoint: Path, args: Any) -> Measured:
    """Sample from one model, and let it read what came out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompts = encode_prompts(tokenizer, read_prompts(args.prompts)[: args.count])
    if args.prompt_tokens:
        prompts = [[turn[: args.prompt_tokens] for turn in turns] for turns in prompts]
    folder = args.work / name
    folder.mkdir(parents=True, exist_ok=True)
    samplings = []
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(RouteStore(folder / "store.log"))
        server = VllmServer(
            checkpoint,
            dtype="bfloat16",
            device=args.device,
            served_name=name,
            log_path=folder / "vllm.log",
            environment={"ROUTEREPLAY_STORE_URL": store.base_url},
            arguments=args.vllm.split(),
            command=API_SERVER if args.api_server else SERVE,
            ready_timeout_s=300.0,
        )
        stack.enter_context(server)
        say(name, f"vLLM {version('vllm')} is up")
        client = stack.enter_context(RouteStoreClient(store.base_url))
        engine = Engine(server.base_url, name, concurrency=args.concurrency)
        stack.callback(engine.close)
        for seed in range(args.seeds):
            samplings.append(
                sample(
                    engine,
                    client,
                    prompts,
                    seed=seed,
                    max_tokens=args.max_tokens,
                    ignore_eos=True,
                    name=name,
                )
            )
            say(name, f"seed {seed}: {samplings[-1].num_tokens} tokens, routes fetched")
    return Measured(samplings, read_hf_config(checkpoint))


def score(name: str, checkpoint: Path, measured: Measured, text: str, args: Any) -> str | None:
    """Score what was sampled under one topology; return what went wrong, if anything did."""
    try:
        topology = Topology.parse(text)
        measured.score(
            topology,
            checkpoint=str(checkpoint),
            device=args.device,
            dtype="bfloat16",
            row_tokens=args.row_tokens,
            # The spread over seeds is a matter of the first topology.
            samplings=0 if text == args.topologies[0] else 1,
            timeout_s=args.timeout,
        )
    except RouteReplayError as error:
        say(name, f"Megatron {text}: {error.message}")
        return error.message
    stages = ", ".join(f"{stage} {s:.1f} s" for stage, s in measured.stages[str(topology)].items())
    say(name, f"Megatron {text}: scored ({stages})")
    return None


def say(name: str, text: str) -> None:
    """Print a line with the time that has passed."""
    print(f"[{time.monotonic() - BEGIN:6.1f} s] {name}: {text}", flush=True)


def machine(device: str) -> dict[str, Any]:
    """Return what was measured on."""
    names = ("vllm", "megatron-core", "torch", "transformers", "numpy")
    facts: dict[str, Any] = {"python": platform.python_version()}
    for package in names:
        facts[package] = version(package)
    if device == "cuda":
        import torch

        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpus"] = torch.cuda.device_count()
    else:
        facts["cpus"] = os.cpu_count()
    return facts


def main() -> None:
    """Measure every model and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64, help="prompts")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="of a turn, 0 for all")
    parser.add_argument("--max-tokens", type=int, default=64, help="sampled in a turn")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--topologies", nargs="+", default=["1"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--row-tokens", type=int, default=2048)
    parser.add_argument("--vllm", default="", help="arguments for vLLM's server")
    parser.add_argument("--api-server", action="store_true", help="in the place of vllm serve")
    parser.add_argument("--timeout", type=float, default=300.0, help="of each topology")
    parser.add_argument("--work", type=Path, default=Path("small-moe"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {
        "command": {name: str(value) for name, value in vars(args).items()},
        "machine": machine(args.device),
        "models": {},
    }
    for item in args.model:
        name, folder = item.split("=", 1)
        measured = run(name, Path(folder), args)
        failures: dict[str, str] = {}
        for topology in args.topologies:
            wrong = score(name, Path(folder), measured, topology, args)
            if wrong is not None:
                failures[topology] = wrong
            facts, text = facts_of(measured)
            facts["failures"] = failures
            training = Path(folder, "training.json")
            if training.exists():
                facts["training"] = json.loads(training.read_text())
            results["models"][name] = facts
            if wrong is None:
                print(f"\n{name}\n{text}\n", *facts["notes"], sep="\n", flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps(results, indent=1))


BEGIN = time.monotonic()

if __name__ == "__main__":
    main()
