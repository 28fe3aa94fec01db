"""What replay adds to one router call: operations launched, and microseconds of the host.

    python benchmarks/router_call.py                    # on the CPU
    python benchmarks/router_call.py --device cuda:0

The rows are few, so that the time is that of the calls and not of the arithmetic. Calls:
`live`, the top-k that Megatron-Core runs without replay; `replay`, `check_input` and
`get_replay_topk` of a router in any step; `mixed`, of a microbatch with live rows;
`compared`, the one call of a step that the canary looks at (in the first step, each of
the first microbatch). `begin` is `begin_microbatch`, `begin, ahead` of one that `prefetch`
staged.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))

from megatron_model import Size, build, one_process, pack, routers, row_ids

from routereplay.patches.megatron import RouterReplay, enable_router_replay

SIZE = Size(layers=12, hidden=32, heads=4, expert_hidden=16, vocab=64, batch=2, length=8)
ROWS = SIZE.batch * SIZE.length

Measure = Callable[[str, Callable[[], Any]], None]

_VIEWS = ("select", "slice", "view", "expand", "transpose", "t", "unbind", "unsqueeze", "detach")


class Operations(TorchDispatchMode):
    """Counts the operations that launch something: views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and run one operation."""
        self.count += func.overloadpacket.__name__.strip("_") not in _VIEWS
        return func(*args, **(kwargs or {}))


class Calls:
    """The routers of a small model, called one by one in an open step of replay."""

    def __init__(self, device: torch.device) -> None:
        self.model = build(SIZE, "none", device, experts="sequential")
        self.routers = routers(self.model)
        self.ids = row_ids(SIZE)
        noise = np.random.default_rng(0).random((ROWS, SIZE.layers, SIZE.experts))
        experts = noise.argsort(-1)[..., -SIZE.topk :].astype(np.uint8)
        self.routes = pack(experts, SIZE)
        self.mixed_routes = pack(experts, SIZE, live=np.arange(ROWS) % 8 == 0)
        # A router flattens [s, b]. Its scores choose what the routes have, for the canary.
        self.scores = [
            torch.from_numpy(noise[self.ids.t().reshape(-1), layer_idx]).float().to(device)
            for layer_idx in range(SIZE.layers)
        ]
        self.hidden = torch.zeros(SIZE.length, SIZE.batch, SIZE.hidden, device=device)

    def step(self, replay: RouterReplay, measure: Measure) -> None:
        """Make the calls of one step, each through `measure`."""
        with replay.step():
            measure("prefetch", lambda: replay.prefetch(self.routes, self.ids))
            time.sleep(0.002)  # The worker stages meanwhile.
            measure("begin, ahead", lambda: replay.begin_microbatch(self.routes, self.ids))
            measure("compared", functools.partial(self._replayed, 0))
            for slot in range(1, SIZE.layers):
                measure("replay", functools.partial(self._replayed, slot))
            measure("begin", lambda: replay.begin_microbatch(self.routes, self.ids))
            for slot in range(SIZE.layers):
                measure("replay", functools.partial(self._replayed, slot))
                measure("live", functools.partial(top_k, self.scores[slot], SIZE.topk))
            replay.begin_microbatch(self.mixed_routes, self.ids)
            for slot in range(SIZE.layers):
                measure("mixed", functools.partial(self._replayed, slot))

    def _replayed(self, slot: int) -> None:
        """Make one call as a router of Megatron-Core does."""
        layer = self.routers[slot].router_replay
        layer.check_input(self.routers[slot], (self.hidden,), {})
        layer.get_replay_topk(self.scores[slot], SIZE.topk, None, None, top_k)


def top_k(scores: torch.Tensor, topk: int, *_groups: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest scores and their ids."""
    return torch.topk(scores, k=topk, dim=1)


def launches(calls: Calls, replay: RouterReplay) -> dict[str, float]:
    """Return the operations of each kind of call, the mean over a step."""
    seen: dict[str, list[int]] = defaultdict(list)

    def count(kind: str, call: Callable[[], Any]) -> None:
        with Operations() as operations:
            call()
        seen[kind].append(operations.count)

    calls.step(replay, count)
    return {kind: round(statistics.mean(counts), 1) for kind, counts in sorted(seen.items())}


def host_us(calls: Calls, replay: RouterReplay, steps: int) -> dict[str, float]:
    """Return the median microseconds of each kind of call."""
    seen: dict[str, list[float]] = defaultdict(list)

    def take_time(kind: str, call: Callable[[], Any]) -> None:
        begun_ns = time.perf_counter_ns()
        call()
        seen[kind].append((time.perf_counter_ns() - begun_ns) / 1000)

    for _ in range(steps):
        calls.step(replay, take_time)
    return {kind: round(statistics.median(times), 1) for kind, times in sorted(seen.items())}


def measured(device: torch.device, steps: int) -> dict[str, Any]:
    """Return everything that is measured."""
    with one_process(device):
        calls = Calls(device)
        replay = enable_router_replay(calls.model, canary_layer=1)
    # Outside of the groups: the stand-ins for a GPU slow every operation down.
    with torch.no_grad():
        calls.step(replay, lambda _kind, call: call())
        operations, times = launches(calls, replay), host_us(calls, replay, steps)
    replay.disable()
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "rows": ROWS,
        "experts": SIZE.experts,
        "topk": SIZE.topk,
        "steps": steps,
        "operations": operations,
        "host_us": times,
    }


def show(facts: dict[str, Any]) -> None:
    """Print a line for each kind of call."""
    print(f"{facts['rows']} rows, top-{facts['topk']} of {facts['experts']} experts")
    print(f"{'call':14} {'operations':>10} {'host us':>8}")
    for kind, operations in facts["operations"].items():
        print(f"{kind:14} {operations:10.1f} {facts['host_us'][kind]:8.1f}")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts = measured(torch.device(args.device), args.steps)
    show(facts)
    if args.out is not None:
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
