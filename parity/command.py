"""What `routereplay parity` does: bring up what is missing, sample, score, judge."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from routereplay.client import RouteStoreClient
from routereplay.parity.column_names import DENSE_SCORES, REPLAY_ON, kind_of
from routereplay.parity.gates import DENSE, Gates
from routereplay.parity.hf_config import DecoderShape, read_hf_config
from routereplay.parity.measurement import Measured
from routereplay.parity.prompts import DEFAULT_PROMPTS, encode_prompts, read_prompts
from routereplay.parity.report import facts_of
from routereplay.parity.rollout import Engine
from routereplay.parity.sampling import Sampling, sample, sample_stored
from routereplay.parity.store_server import RouteStore
from routereplay.parity.topology import Topology
from routereplay.parity.vllm_server import VllmServer


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `routereplay parity`."""

    checkpoint: Path
    prompts: Path | None
    trajectories: tuple[str, ...]
    store: str | None
    vllm: str | None
    served_name: str
    topologies: tuple[str, ...]
    device: str
    dtype: str
    megatron_dtype: str
    max_tokens: int
    seeds: int
    vllm_arguments: tuple[str, ...]
    timeout_s: float
    max_pct: float | None
    max_kl: float | None


def run(options: Options, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """Return what was found and the table as text.

    Raises:
        ValueError: options that contradict each other, or mean nothing.
        RouteReplayError: an engine or the store failed, or routes do not fit.
    """
    topologies = [Topology.parse(text) for text in options.topologies]
    _check(options)
    shape = read_hf_config(options.checkpoint)
    _check_routes(options, shape)
    family = shape.model_type if shape.routes else DENSE
    gates = Gates.of_family(family, mean_abs_pct=options.max_pct, top20_kl=options.max_kl)
    device = options.device or _device()
    _check_devices(topologies, device)
    if shape.routes is None:
        say(f"{shape.model_type} is dense: it routes nothing, so there is nothing to replay")
    measured = Measured(_samplings(options, shape, device, say), shape)
    for topology in topologies:
        how = "live and replayed" if shape.routes else "live"
        say(f"Megatron {topology} scores {measured.bounds[-1]} tokens, {how}")
        measured.score(
            topology,
            checkpoint=str(options.checkpoint),
            device=device,
            dtype=options.megatron_dtype,
            timeout_s=options.timeout_s,
        )
    facts, table = facts_of(measured)
    exceeded = [
        f"{name}: {what}"
        for name, column in measured.columns().items()
        if kind_of(name) in {REPLAY_ON, DENSE_SCORES}
        for what in gates.exceeded(column)
    ]
    facts |= {
        "checkpoint": str(options.checkpoint),
        "family": family,
        "model": {
            "model_type": shape.model_type,
            "layers": shape.num_layers,
            "moe_layers": sum(shape.moe_layers),
            "experts": shape.num_experts if shape.routes else 0,
            "topk": shape.topk if shape.routes else 0,
        },
        "gates": {"limits": asdict(gates), "exceeded": exceeded},
        "run": _run_facts(options, device),
    }
    return facts, table


def _check(options: Options) -> None:
    if options.trajectories and options.prompts:
        msg = "--trajectory scores what was sampled already; it takes no --prompts"
        raise ValueError(msg)
    if options.device not in {"", "cpu", "cuda"}:
        msg = f"--device {options.device!r}; expected cpu or cuda"
        raise ValueError(msg)
    if not (options.checkpoint / "config.json").is_file():
        msg = f"{options.checkpoint} holds no config.json; expected a Hugging Face checkpoint"
        raise ValueError(msg)


def _check_routes(options: Options, shape: DecoderShape) -> None:
    if shape.routes is None and options.trajectories:
        msg = f"--trajectory: no store has routes of {shape.model_type}, which is dense"
        raise ValueError(msg)
    if shape.routes is not None and (options.trajectories or options.vllm) and not options.store:
        msg = "--trajectory and --vllm need --store: the store that holds, or gets, their routes"
        raise ValueError(msg)


def _check_devices(topologies: list[Topology], device: str) -> None:
    if device != "cuda":
        return
    import torch

    there = torch.cuda.device_count()
    for topology in topologies:
        if topology.world_size > there:
            msg = (
                f"--topology {topology} takes {topology.world_size} GPUs, {there} are here; "
                "--device cpu runs it without"
            )
            raise ValueError(msg)


def _samplings(
    options: Options, shape: DecoderShape, device: str, say: Callable[[str], None]
) -> list[Sampling]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="routereplay-")))
        store_url = options.store if shape.routes else None
        if shape.routes and store_url is None:
            say("a route store of our own")
            store_url = stack.enter_context(RouteStore(folder / "store.log")).base_url
        vllm_url = options.vllm
        if vllm_url is None:
            say("a vLLM server of our own, up to some minutes")
            server = VllmServer(
                options.checkpoint,
                dtype=options.dtype,
                device=device,
                served_name=options.served_name,
                log_path=folder / "vllm.log",
                environment={"ROUTEREPLAY_STORE_URL": store_url} if store_url else {},
                arguments=options.vllm_arguments,
                ready_timeout_s=900.0,
            )
            vllm_url = stack.enter_context(server).base_url
        store = stack.enter_context(RouteStoreClient(store_url)) if store_url else None
        engine = Engine(vllm_url, options.served_name)
        stack.callback(engine.close)
        if store and options.trajectories:
            say(f"{len(options.trajectories)} stored trajectories, read again by vLLM")
            return [sample_stored(engine, store, options.trajectories)]
        prompts = _prompts(options)
        say(f"{len(prompts)} trajectories, sampled {options.seeds} times")
        return [
            sample(engine, store, prompts, seed=seed, max_tokens=options.max_tokens)
            for seed in range(options.seeds)
        ]


def _prompts(options: Options) -> list[list[list[int]]]:
    from transformers import AutoTokenizer

    given = read_prompts(options.prompts) if options.prompts else [[p] for p in DEFAULT_PROMPTS]
    return encode_prompts(AutoTokenizer.from_pretrained(options.checkpoint), given)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _run_facts(options: Options, device: str) -> dict[str, Any]:
    packages = {}
    for name in ("routereplay", "vllm", "megatron-core", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    told = {name: getattr(options, name) for name in Options.__slots__}
    return {"options": {name: str(value) for name, value in told.items()}, "device": device} | {
        "versions": packages
    }
