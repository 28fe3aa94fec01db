"""vLLM servers of one tiny model on GPUs, each set up otherwise, started side by side.

A server with CUDA graphs takes one to two minutes to start, and most of that is Python: all of
them together take hardly longer than one. ROUTEREPLAY_TEST_DEVICE=cpu starts the same servers
on a CPU build, less what one cannot do, to try the tests themselves.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from support.behaviours import WITHOUT_TAP
from support.lora_adapter import MODULES

from routereplay.parity.vllm_server import API_SERVER, VllmServer

ON_CPU = os.environ.get("ROUTEREPLAY_TEST_DEVICE") == "cpu"
DEVICES = 1 if ON_CPU else torch.cuda.device_count()

CROWDED = (
    *("--num-gpu-blocks-override", "40", "--max-num-batched-tokens", "64", "--max-num-seqs", "16"),
)
"""A small cache and small steps: prompts come in chunks, and requests are preempted."""

_ON_GPU = (
    *("--max-model-len", "1024", "--block-size", "32", "--attention-backend", "FLASH_ATTN"),
    *("--gpu-memory-utilization", "0.1", "--kv-cache-memory-bytes", str(2**30)),
)
NGRAM = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}'


@dataclass(frozen=True)
class Setup:
    """How a server is started."""

    arguments: tuple[str, ...]
    devices: tuple[int, ...] = (0,)


def setups(adapter: Path) -> dict[str, Setup]:
    """Return every server of these tests that this machine can start."""
    last = DEVICES - 1
    # A CPU build lacks the kernel for adapters of experts.
    targets = ("--lora-target-modules", *MODULES) if ON_CPU else ()
    lora = ("--enable-lora", "--lora-modules", f"adapter={adapter}", "--max-lora-rank", "8")
    found = {
        "overlapping": Setup(CROWDED),
        "one step at a time": Setup((*CROWDED, "--no-async-scheduling"), (last,)),
        "adapter": Setup((*lora, *targets)),
    }
    if not ON_CPU:
        found["speculating"] = Setup(("--speculative-config", NGRAM), (last,))
    if DEVICES > 1:
        found["two ranks"] = Setup(
            ("--data-parallel-size", "2", "--enable-expert-parallel"), (0, 1)
        )
    return found


class Fleet:
    """The servers of a test session, all started when the first is asked for."""

    def __init__(self, model: Path, adapter: Path, store_url: str, path: str, logs: Path) -> None:
        self._model = model
        self._setups = setups(adapter)
        self._environment = {"ROUTEREPLAY_STORE_URL": store_url, "PYTHONPATH": path}
        if WITHOUT_TAP:
            self._environment["ROUTEREPLAY_ENABLED"] = "0"
        self._logs = logs
        self._starting: dict[str, Future[VllmServer]] = {}
        self._pool = ThreadPoolExecutor(2 if ON_CPU else 8)

    def __getitem__(self, name: str) -> VllmServer:
        if not self._starting:
            for each, setup in self._setups.items():
                self._starting[each] = self._pool.submit(self._start, each, setup)
        return self._starting[name].result()

    def stop(self) -> None:
        """End all of them."""
        for starting in self._starting.values():
            if starting.exception() is None:
                starting.result().stop()
        self._pool.shutdown()

    def _start(self, name: str, setup: Setup) -> VllmServer:
        devices = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, setup.devices))}
        return VllmServer(
            self._model,
            log_path=self._logs / f"vllm-{name.replace(' ', '-')}.log",
            dtype="float32" if ON_CPU else "bfloat16",
            device="cpu" if ON_CPU else "cuda",
            environment={**self._environment, **({} if ON_CPU else devices)},
            arguments=(*(() if ON_CPU else _ON_GPU), *setup.arguments),
            # `vllm serve` imports tools that a pruned build does not have.
            command=API_SERVER,
            ready_timeout_s=240.0,
        ).start()
