"""Two GPUs replay what one does: losses and gradients of TP2 with SP, EP2 and PP2.

    python benchmarks/megatron_replay_two_gpus.py                  # two GPUs, NCCL
    python benchmarks/megatron_replay_two_gpus.py --device cpu     # two processes, gloo

Microbatches replay random experts with full recompute, in float32, through Megatron-Core's
own schedules. What one process makes of them without recompute is the reference.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parent))

from megatron_model import Batch, Size, build, model_parallel, pack, row_ids

from routereplay.parity.megatron_cpu import megatron_on_cpu
from routereplay.parity.norms import SequenceParallelNorm
from routereplay.patches.megatron import enable_router_replay

SIZE = Size(4, 128, 8, 16, 4, 64, 256, 2, 64)
MICROBATCHES = 4
TOLERANCE = 1e-4
LAYOUTS: dict[str, dict[str, int]] = {
    "alone": {},
    "tp2-sp": {"tensor_model_parallel_size": 2, "expert_tensor_parallel_size": 1},
    "ep2": {"expert_model_parallel_size": 2},
    "pp2": {"pipeline_model_parallel_size": 2},
}


def build_stage(layout: str, device: torch.device) -> Any:
    """Return this rank's model."""
    from megatron.core import parallel_state

    torch.manual_seed(0)
    return build(
        SIZE,
        "none" if layout == "alone" else "full",
        device,
        norm=SequenceParallelNorm,
        bf16=False,
        params_dtype=torch.float32,
        pipeline_dtype=torch.float32,
        batch_p2p_comm=False,
        sequence_parallel=layout == "tp2-sp",
        stage={
            "pre_process": parallel_state.is_pipeline_first_stage(),
            "post_process": parallel_state.is_pipeline_last_stage(),
        },
        **LAYOUTS[layout],
    )


def routes_of(seed: int) -> Any:
    """Return random distinct experts for one microbatch."""
    shape = (SIZE.batch * SIZE.length, SIZE.layers, SIZE.experts)
    order = np.random.default_rng(seed).random(shape).argsort(-1)
    return pack(np.ascontiguousarray(order[..., : SIZE.topk].astype(np.uint8)), SIZE)


def train(model: Any, seeds: list[int], device: torch.device) -> tuple[dict[int, float], Any]:
    """Run the schedule over the microbatches `seeds`; return losses and the step's report."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    replay = enable_router_replay(model, canary_every=0)  # Random experts are foreign ones.
    routes = {seed: routes_of(seed) for seed in seeds}
    losses: dict[int, float] = {}
    ids = row_ids(SIZE)

    def forward_step(iterator: Any, chunk: Any) -> Any:
        seed = next(iterator)
        replay.begin_microbatch(routes[seed], ids)
        later = seeds.index(seed) + 1
        if later < len(seeds):
            replay.prefetch(routes[seeds[later]], ids)

        def loss_func(output: torch.Tensor) -> Any:
            loss = output.float().mean()
            losses[seed] = loss.item()
            return loss, {}

        return Batch.of(SIZE, seed, device).output(chunk), loss_func

    with replay.step():
        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(seeds),
            model=model,
            num_microbatches=len(seeds),
            seq_length=SIZE.length,
            micro_batch_size=SIZE.batch,
            forward_only=False,
        )
    return losses, replay.last_step


def whole_name(model: Any, name: str) -> str:
    """Return the name that a parameter of a pipeline stage has in the whole model."""
    match = re.match(r"decoder\.layers\.(\d+)\.(.*)", name)
    if match is None:
        return name
    return f"decoder.layers.{model.decoder.layers[int(match[1])].layer_number - 1}.{match[2]}"


def own_part(name: str, parameter: Any, whole: torch.Tensor, rank: int) -> torch.Tensor:
    """Return this rank's part of a whole weight or gradient."""
    if whole.shape == parameter.shape:
        return whole
    dim = 0 if ".experts." in name else parameter.partition_dim
    return whole.chunk(2, dim=dim)[rank]


def summed_gradient(layout: str, name: str, parameter: Any) -> torch.Tensor:
    """Return a gradient after what `finalize_model_grads` and data parallelism do to it."""
    gradient = parameter.grad.clone()
    expert = ".experts." in name
    if layout == "tp2-sp" and (expert or getattr(parameter, "sequence_parallel", False)):
        dist.all_reduce(gradient)  # Each rank saw half of the rows.
    if layout == "ep2":
        if not expert:
            dist.all_reduce(gradient)  # Each rank saw half of the microbatches.
        gradient /= 2
    return gradient


def compare(layout: str, model: Any, named: Any, folder: Path, rank: int) -> dict[str, float]:
    """Return each parameter's largest gradient difference over the gradient's largest entry."""
    reference = torch.load(folder / "alone.pt", map_location=next(model.parameters()).device)
    differences = {}
    for name, parameter in named:
        gradient = summed_gradient(layout, name, parameter)
        right = reference["gradients"][name]
        own = own_part(name, parameter, right, rank)
        differences[name] = float((gradient - own).abs().max() / right.abs().max())
    return differences


def run(layout: str, rank: int, world_size: int, folder: Path, device: torch.device) -> None:
    """Train in one layout and write what was seen."""
    with model_parallel(**LAYOUTS[layout]):
        model = build_stage(layout, device)
        named = [(whole_name(model, name), p) for name, p in model.named_parameters()]
        if layout != "alone":
            weights = torch.load(folder / "alone.pt", map_location=device)["weights"]
            with torch.no_grad():
                for name, parameter in named:
                    parameter.copy_(own_part(name, parameter, weights[name], rank))
        seeds = list(range(rank if layout == "ep2" else 0, MICROBATCHES, 1 + (layout == "ep2")))
        weights = {name: p.detach().clone() for name, p in named}
        losses, report = train(model, seeds, device)
        facts: dict[str, Any] = {"losses": losses, "report": str(report)}
        if layout == "alone":
            gradients = {name: p.grad for name, p in named}
            torch.save({"weights": weights, "gradients": gradients}, folder / "alone.pt")
        else:
            facts["differences"] = compare(layout, model, named, folder, rank)
        (folder / f"{layout}-{rank}.json").write_text(json.dumps(facts))


def worker(rank: int, layout: str, world_size: int, folder: Path, kind: str) -> None:
    """Run one rank of a layout in a process of its own."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    shim: Any = contextlib.nullcontext() if kind == "cuda" else megatron_on_cpu()
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    with shim:
        dist.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            store=dist.FileStore(str(folder / f"store-{layout}"), world_size),
            rank=rank,
            world_size=world_size,
        )
        run(layout, rank, world_size, folder, device)


def judge(layout: str, folder: Path) -> dict[str, Any]:
    """Print how far two ranks are from one, and return it."""
    alone = json.loads((folder / "alone-0.json").read_text())
    ranks = [json.loads((folder / f"{layout}-{rank}.json").read_text()) for rank in range(2)]
    losses = {seed: loss for rank in ranks for seed, loss in rank["losses"].items()}
    apart = max(abs(loss - alone["losses"][seed]) for seed, loss in losses.items())
    worst = max((value, name) for rank in ranks for name, value in rank["differences"].items())
    agrees = losses.keys() == alone["losses"].keys() and max(apart, worst[0]) < TOLERANCE
    print(
        f"{layout:7} losses differ by {apart:.1e}, gradients by {worst[0]:.1e} of their largest "
        f"entry ({worst[1]}): {'agrees' if agrees else 'DIFFERS'}"
    )
    print(f"        {ranks[0]['report']}", flush=True)
    return {"agrees": agrees, "losses": apart, "gradients": worst[0], "parameter": worst[1]}


def main() -> None:
    """Run every layout against one process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--layouts", nargs="+", choices=[*LAYOUTS][1:], default=[*LAYOUTS][1:])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mp.spawn(worker, ("alone", 1, folder, args.device), nprocs=1)
        for layout in args.layouts:
            mp.spawn(worker, (layout, 2, folder, args.device), nprocs=2)
            found[layout] = judge(layout, folder)
    if args.out is not None:
        card = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
        facts = {"device": card, "torch": torch.__version__, "tolerance": TOLERANCE}
        args.out.write_text(json.dumps(facts | {"layouts": found}, indent=1))
    sys.exit(0 if all(each["agrees"] for each in found.values()) else 1)


if __name__ == "__main__":
    main()
