"""Train on recorded trajectories with stock Megatron-Core, on a CPU.

    ./scripts/demo --keep          # a store with trajectories; it prints the address
    export PYTHONPATH=examples
    python -m megatron_loop.run --store URL --checkpoint .demo/checkpoint demo-0 demo-1
    torchrun --standalone --nproc-per-node 2 -m megatron_loop.run ...    # two pipeline stages

In a process alone it is the plain loop, under torchrun a pipeline of as many stages.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_loop.batch import Microbatch, microbatches
from routereplay.client import RouteStoreClient
from routereplay.parity.hf_to_megatron import load_hf_checkpoint
from routereplay.parity.megatron_cpu import megatron_on_cpu, single_process_groups
from routereplay.patches.megatron import (
    RoutedModel,
    RouterReplay,
    enable_router_replay,
    routed_model,
)

Step = Callable[[], list[torch.Tensor]]


def main() -> None:
    """Train, and print how likely the sampled tokens become."""
    args = _arguments()
    torch.set_num_threads(1)
    stages = int(os.environ.get("WORLD_SIZE", "1"))
    sampled_from = routed_model(json.loads((args.checkpoint / "config.json").read_text()))
    with megatron_on_cpu(), _groups(stages):
        make = _plain if stages == 1 else _pipeline
        step, replay, batches = make(args, sampled_from, stages)
        for number in range(1, args.steps + 1):
            _show(number, step(), replay, batches)


def _plain(
    args: argparse.Namespace, sampled_from: RoutedModel, _stages: int
) -> tuple[Step, RouterReplay, Sequence[Microbatch]]:
    from megatron_loop.plain import train_step

    model = load_hf_checkpoint(args.checkpoint).train()
    replay = enable_router_replay(model, model=sampled_from)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    batches = _fetch(args, sampled_from, replay)
    return lambda: train_step(model, replay, optimizer, batches), replay, batches


def _pipeline(
    args: argparse.Namespace, sampled_from: RoutedModel, stages: int
) -> tuple[Step, RouterReplay, Sequence[Microbatch]]:
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from megatron_loop.pipeline import train_step

    model = load_hf_checkpoint(
        args.checkpoint,
        pipeline_model_parallel_size=stages,
        pipeline_dtype=torch.float32,
        batch_p2p_comm=False,
    ).train()
    model.config.finalize_model_grads_func = finalize_model_grads
    chunks = [DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)]
    replay = enable_router_replay(chunks, model=sampled_from)
    config = OptimizerConfig(
        optimizer="sgd", lr=args.lr, sgd_momentum=0.0, weight_decay=0.0, clip_grad=0.0
    )
    optimizer = get_megatron_optimizer(config, chunks, use_gloo_process_groups=False)
    batches = _fetch(args, sampled_from, replay)
    return lambda: train_step(chunks, replay, optimizer, batches), replay, batches


def _fetch(
    args: argparse.Namespace, sampled_from: RoutedModel, replay: RouterReplay
) -> list[Microbatch]:
    """Return the microbatches with the routes of this stage's layers."""
    numbers = replay.layer_numbers or (1,)  # A stage without routers needs the tokens alone.
    layers = range(min(numbers) - 1, max(numbers))
    with RouteStoreClient(args.store) as store:
        trajectories = store.fetch_trajectories(args.trajectories, layers=layers, wait_s=30)
    return microbatches(trajectories, sampled_from.shape, size=args.microbatch_size)


def _show(
    step: int, logprobs: list[torch.Tensor], replay: RouterReplay, batches: Sequence[Microbatch]
) -> None:
    report = replay.last_step
    if not logprobs or report is None:
        return  # Only the last stage has them.
    sampled = [
        logprob[batch.advantages != 0] for logprob, batch in zip(logprobs, batches, strict=True)
    ]
    line = {
        "step": step,
        "replayed": report.rows.replayed,
        "live": report.rows.live,
        "overlap": min((reading.overlap for reading in report.canary), default=None),
        "logprobs": torch.cat(sampled).tolist(),
    }
    line["mean_logprob"] = sum(line["logprobs"]) / len(line["logprobs"])
    print(json.dumps(line), flush=True)


@contextlib.contextmanager
def _groups(stages: int) -> Iterator[None]:
    if stages == 1:
        with single_process_groups():
            yield
        return
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(pipeline_model_parallel_size=stages)
    model_parallel_cuda_manual_seed(1)
    yield
    dist.destroy_process_group()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trajectories", nargs="+", help="ids in the store")
    parser.add_argument("--store", default="http://127.0.0.1:8400")
    parser.add_argument("--checkpoint", type=Path, required=True, help="that vLLM served")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--microbatch-size", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
