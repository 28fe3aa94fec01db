"""What a step does beside arithmetic: router time, copies, and waits of the host."""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from megatron_model import routers

_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def router_times(
    model: Any, step: Callable[[], None], device: torch.device, *, drained: bool = False
) -> dict[str, float]:
    """Return median microseconds of `TopKRouter.routing`: on the device, and of the host.

    Top-k or replay, score function, and the scatter to probabilities and map; not the
    gating product before it. On the device, the time between two events on its stream.

    Args:
        drained: wait for the device before each call. Otherwise a host that is ahead of a
            busy device waits inside for room in its queue, however little it has to do.
    """
    host_us: list[float] = []
    events: list[tuple[Any, Any]] = []

    def watched(routing: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **fields: Any) -> Any:
            on_gpu = device.type == "cuda"
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if on_gpu and drained:
                torch.cuda.synchronize()
            if on_gpu:
                begun.record()
            at_ns = time.perf_counter_ns()
            try:
                return routing(*args, **fields)
            finally:
                host_us.append((time.perf_counter_ns() - at_ns) / 1000)
                if on_gpu:
                    ended.record()
                    events.append((begun, ended))

        return call

    watched_routers = routers(model)
    for router in watched_routers:
        router.routing = watched(router.routing)
    try:
        step()
    finally:
        for router in watched_routers:
            del router.routing
    found = {"calls": len(host_us), "host_us": round(statistics.median(host_us), 1)}
    if events:
        torch.cuda.synchronize()
        device_us = [begun.elapsed_time(ended) * 1000 for begun, ended in events]
        found["device_us"] = round(statistics.median(device_us), 1)
    return found


def copies_and_waits(
    step: Callable[[], None], device: torch.device, microbatches: int
) -> dict[str, float]:
    """Return how often a microbatch launches, copies between host and device, and waits."""
    if device.type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
    seen: Counter[str] = Counter()
    for event in profiler.events():
        if event.name.startswith("Memcpy"):
            seen[" ".join(event.name.split()[:2])] += 1
        elif event.name.startswith(_LAUNCHES):
            seen["kernels launched"] += 1
        elif event.name in _WAITS:
            seen[event.name] += 1
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    seen["synchronizing operations"] = sum("synchroniz" in str(w.message) for w in caught)
    return {name: count / microbatches for name, count in sorted(seen.items())}
