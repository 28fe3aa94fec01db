"""Does replay cost a training step anything? Live routing and replay, turn by turn.

    python benchmarks/megatron_replay.py --out replay.json            # one GPU
    python benchmarks/megatron_replay.py --device cpu --tiny --pairs 2    # its logic, anywhere

A pair is one visit of each kind, in alternating order; a visit is a first step, told
apart, and `--steps` timed ones, of which the median counts. Live steps run with replay
disabled: no object of ours is on a router. The first replayed step makes the buffers and
compares every layer with the router's own choice, a later one compares one layer; both
do it in the time that is measured. The replayed routes are the model's own, so both
kinds do the same work in the experts. Python collects its garbage between the steps.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from counting import copies_and_waits, router_times
from megatron_model import (
    RECOMPUTE,
    TINY,
    Batch,
    Size,
    build,
    check_grouped_products,
    one_process,
    record,
    row_ids,
)

from routereplay.patches.megatron import RouterReplay, enable_router_replay


class Trainer:
    """Forward and backward of a step's microbatches, routed live or replayed."""

    def __init__(self, size: Size, recompute: str, device: torch.device, args: Any) -> None:
        self.size, self.device = size, device
        torch.manual_seed(0)
        self.prefetch = not args.no_prefetch
        self.model = build(size, recompute, device, experts=args.expert_kernel)
        self.batches = [Batch.of(size, seed, device) for seed in range(args.microbatches)]
        self.routes = [record(self.model, batch, size) for batch in self.batches]
        self.row_ids = row_ids(size)
        self.losses: list[torch.Tensor] = []

    @contextlib.contextmanager
    def kind(self, name: str) -> Iterator[Callable[[], None]]:
        """Hand out the step of one kind; the first is the first of its kind anew."""
        if name == "live":
            yield self.live_step
            return
        replay = enable_router_replay(self.model)
        try:
            yield lambda: self.replay_step(replay)
        finally:
            replay.disable()

    def live_step(self) -> None:
        """Train on the router's own choice."""
        self.model.zero_grad(set_to_none=True)
        self.losses = []
        for batch in self.batches:
            self._train(batch)

    def replay_step(self, replay: RouterReplay) -> None:
        """Train on recorded experts, the next microbatch staged while one runs."""
        self.model.zero_grad(set_to_none=True)
        self.losses = []
        with replay.step():
            for index, batch in enumerate(self.batches):
                replay.begin_microbatch(self.routes[index], self.row_ids)
                self._train(batch, lambda index=index: self._stage_next(replay, index))

    def _stage_next(self, replay: RouterReplay, index: int) -> None:
        """Stage while the device has the whole forward before it, and the host is ahead."""
        if self.prefetch:
            replay.prefetch(self.routes[(index + 1) % len(self.routes)], self.row_ids)

    def _train(self, batch: Batch, after_forward: Callable[[], None] = lambda: None) -> None:
        loss = batch.output(self.model).float().mean()
        after_forward()
        loss.backward()
        self.losses.append(loss.detach())

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def timed(trainer: Trainer, step: Callable[[], None]) -> float:
    """Return the seconds of one step."""
    trainer.wait()
    gc.collect()
    begun_s = time.perf_counter()
    step()
    trainer.wait()
    return time.perf_counter() - begun_s


def peak_bytes(trainer: Trainer, step: Callable[[], None]) -> int:
    """Return the most memory that the allocator held during a step."""
    if trainer.device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    step()
    trainer.wait()
    return torch.cuda.max_memory_allocated()


def measure_pairs(trainer: Trainer, pairs: int, steps: int) -> dict[str, Any]:
    """Return the seconds of each kind of step and their ratio, pair by pair."""
    first: dict[str, list[float]] = {"live": [], "replay": []}
    seconds: dict[str, list[list[float]]] = {"live": [], "replay": []}
    losses: dict[str, list[list[float]]] = {"live": [], "replay": []}
    timed(trainer, trainer.live_step)  # Kernels are chosen, memory is taken.
    gc.disable()
    for pair in range(pairs):
        for name in ("live", "replay") if pair % 2 == 0 else ("replay", "live"):
            with trainer.kind(name) as step:
                first[name].append(timed(trainer, step))
                seconds[name].append([timed(trainer, step) for _ in range(steps)])
            losses[name].append(torch.stack(trainer.losses).tolist())
    gc.enable()
    tokens = trainer.size.batch * trainer.size.length * len(trainer.batches)
    visits = {name: [statistics.median(s) for s in each] for name, each in seconds.items()}
    return {
        "seconds": seconds,
        "first_seconds": first,
        "tokens_per_s": {name: tokens / statistics.median(s) for name, s in visits.items()},
        "speed_of_replay": quartiles(ratios(visits)),
        "speed_of_first_step": quartiles(ratios(first)),
        "speed_of_fastest_step": min(map(min, seconds["live"])) / min(map(min, seconds["replay"])),
        "losses_equal": losses["live"] == losses["replay"],
        "live_losses_repeat": all(each == losses["live"][0] for each in losses["live"]),
        "losses": {name: each[-1] for name, each in losses.items()},
    }


def ratios(seconds: dict[str, list[float]]) -> list[float]:
    """Return how fast replay was in each pair, in units of live."""
    return [live / replay for live, replay in zip(*seconds.values(), strict=True)]


def quartiles(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles around it."""
    ordered = sorted(values)
    low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return {"low": low, "median": statistics.median(ordered), "high": high}


def measure(size: Size, recompute: str, device: torch.device, args: Any) -> dict[str, Any]:
    """Return everything that is measured of one kind of recompute."""
    trainer = Trainer(size, recompute, device, args)
    facts = measure_pairs(trainer, args.pairs, args.steps)
    for name in ("live", "replay"):
        with trainer.kind(name) as step:
            step()
            facts[f"peak_bytes_{name}"] = peak_bytes(trainer, step)
            facts[f"router_{name}"] = router_times(trainer.model, step, device)
            drained = router_times(trainer.model, step, device, drained=True)
            facts[f"router_{name}"]["host_us_drained"] = drained["host_us"]
            facts[f"counted_{name}"] = copies_and_waits(step, device, args.microbatches)
    return facts


def show(recompute: str, facts: dict[str, Any]) -> None:
    """Print the figures that decide."""
    tokens = facts["tokens_per_s"]
    print(f"recompute {recompute}")
    print(f"  tokens/s       live {tokens['live']:,.0f}   replay {tokens['replay']:,.0f}")
    for title, key in (("replay / live", "speed_of_replay"), ("first step", "speed_of_first_step")):
        speed = facts[key]
        print(
            f"  {title:14} {speed['median']:.4f} x   "
            f"(quartiles {speed['low']:.4f} to {speed['high']:.4f})"
        )
    print(f"  fastest step   {facts['speed_of_fastest_step']:.4f} x")
    for key in ("router", "counted", "peak_bytes"):
        for name in ("live", "replay"):
            print(f"  {key:14} {name:7} {facts[f'{key}_{name}']}")
    print(f"  losses equal   {facts['losses_equal']}, in every pair", flush=True)
    print(f"  live losses    repeat: {facts['live_losses_repeat']}", flush=True)


def parse() -> Any:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU runs in seconds")
    parser.add_argument("--recompute", nargs="+", choices=RECOMPUTE, default=list(RECOMPUTE))
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a visit")
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--expert-kernel", choices=("grouped", "sequential"), default="grouped")
    parser.add_argument("--no-prefetch", action="store_true")
    for name in Size.__annotations__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    args = parse()
    device = torch.device(args.device)
    given = {name: value for name in Size.__annotations__ if (value := getattr(args, name))}
    size = Size(**(vars(TINY if args.tiny else Size()) | given))
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "size": vars(size),
        "microbatches": args.microbatches,
        "pairs": args.pairs,
        "steps": args.steps,
        "expert_kernel": args.expert_kernel,
        "prefetch": not args.no_prefetch,
    }
    print(json.dumps(results), flush=True)
    with one_process(device):
        if args.expert_kernel == "grouped":
            check_grouped_products(device)
        for recompute in args.recompute:
            results[recompute] = measure(size, recompute, device, args)
            show(recompute, results[recompute])
            if args.out is not None:
                args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
