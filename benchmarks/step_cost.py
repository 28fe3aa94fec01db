"""What routes cost a step of a vLLM engine, in its process and in the front end's: CPU time.

Real parts of vLLM on both sides: its scheduler, which plans each step and takes its result
apart, the messages between the processes with their encoder, decoder and sockets, and its
output processor. Only the model is missing: its tokens and routes are made here.

Four engines get the same steps in random order: capture off; vLLM's capture and its native
way; vLLM's engine as it is with a recorder in the front end; and the recorder with its part in
the engine. Run it alone: `PYTHONPATH=benchmarks ./scripts/run-python benchmarks/step_cost.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from recorder_cost import EXPERTS, LAYERS, TOPK, FrontEnd, quartiles, recorder_store, write_table
from route_store.processes import cpu_ticks, steal_share
from serving_gpu.model import SMALL, make

MODES = ("off", "native", "front end only", "recorder")
PARTS = ("engine", "front end")
BLOCK = 16

_numbers = itertools.count()


class Engine:
    """A scheduler and a front end, with a socket between them.

    Args:
        mode: one of `MODES`.
        scheduler: vLLM's.
        plan: its `_update_after_schedule`, patched or not.
        tokenizer: of the detokenizers.
        wire: the two ends of the socket.
    """

    def __init__(
        self, mode: str, scheduler: Any, plan: Callable[..., Any], tokenizer: Any, wire: Any
    ) -> None:
        from vllm.v1.engine import EngineCoreOutputs
        from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

        self.mode = mode
        is_recorded = mode in ("front end only", "recorder")
        self._front = FrontEnd("recorder" if is_recorded else mode, tokenizer, streamed=True)
        self._scheduler, self._plan = scheduler, plan
        self._encoder, self._decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreOutputs)
        self._push, self._pull = wire
        self._running = 0
        self.us: dict[str, list[float]] = {part: [] for part in PARTS}

    def add(self, prompt: int) -> None:
        """Accept a request."""
        from vllm.v1.request import Request

        self._front.add([5] * prompt, max_tokens=10**6)
        request = self._front.request
        if self.mode == "front end only":
            request.sampling_params.extra_args = None
        self._scheduler.add_request(Request.from_engine_core_request(request, None))
        self._running += 1

    def step(self) -> bool:
        """Do one step and return whether it was for decoding only; note what that took."""
        from vllm.v1.core.sched.scheduler import Scheduler

        Scheduler._update_after_schedule = self._plan
        engine, front = _Watch(), _Watch()
        with engine:
            plan = self._scheduler.schedule()
        result = self._compute(plan)
        with engine:
            for outputs in self._scheduler.update_from_output(plan, result).values():
                buffers = self._encoder.encode_into(outputs, bytearray())
                self._push.send_multipart(buffers, copy=False, track=True)
        time.sleep(0.002)
        with front:
            self._front.step(self._decoder.decode(self._pull.recv_multipart(copy=False)).outputs)
        decodes: bool = plan.total_num_scheduled_tokens == self._running
        if decodes:
            self.us["engine"].append(engine.us)
            self.us["front end"].append(front.us)
        return decodes

    def _compute(self, plan: Any) -> Any:
        """Return what the model runner would: a token for each prompt that is whole, and routes."""
        from vllm.v1.outputs import ModelRunnerOutput, RoutedExpertsLists

        names, tokens = list(plan.num_scheduled_tokens), plan.total_num_scheduled_tokens
        requests = [self._scheduler.requests[name] for name in names]
        whole = [one.num_computed_tokens >= one.num_prompt_tokens for one in requests]
        routes = None
        if self.mode != "off":
            rows = np.random.default_rng(1).integers(0, EXPERTS, (tokens, LAYERS, TOPK), np.int32)
            routes = RoutedExpertsLists(rows, np.arange(tokens))
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=[[7] if one else [] for one in whole],
            routed_experts=routes,
        )


class _Watch:
    """Adds up CPU time of this thread."""

    us = 0.0

    def __enter__(self) -> None:
        self._began = time.thread_time_ns()

    def __exit__(self, *_: object) -> None:
        self.us += (time.thread_time_ns() - self._began) / 1000


def _scheduler(model: Path, running: int, blocks: int, *, captures: bool) -> Any:
    """Return the scheduler of an engine that never runs a model."""
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = EngineArgs(
        model=str(model),
        max_model_len=20_480,
        max_num_seqs=running,
        max_num_batched_tokens=8192,
        block_size=BLOCK,
        load_format="dummy",
        enable_prefix_caching=False,
    ).create_engine_config()
    config.model_config.enable_return_routed_experts = captures
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=16, dtype=torch.float32)
    return AsyncScheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        log_stats=True,
    )


def measure(model: Path, running: int, prompt: int, rounds: int) -> dict[str, Any]:
    """Return CPU microseconds of a decode step with `running` requests."""
    import zmq
    from transformers import AutoTokenizer
    from vllm.utils.gc_utils import freeze_gc_heap
    from vllm.v1.core.sched.scheduler import Scheduler

    tokenizer = AutoTokenizer.from_pretrained(model)
    patched = Scheduler._update_after_schedule
    context = zmq.Context()
    blocks = running * (prompt + 2 * rounds) // BLOCK + 2 * running
    engines = []
    for mode in MODES:
        pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        pull.bind(f"ipc://{model}/{next(_numbers)}")
        push.connect(pull.last_endpoint.decode())
        # vLLM's own code, unless the recorder has a part in this engine.
        plan = patched if mode == "recorder" else patched.__wrapped__
        scheduler = _scheduler(model, running, blocks, captures=mode != "off")
        engines.append(Engine(mode, scheduler, plan, tokenizer, (push, pull)))
    for engine in engines:
        for _ in range(running):
            engine.add(prompt)
        while not engine.step():
            pass
        engine.us = {part: [] for part in PARTS}
    freeze_gc_heap()  # As vLLM's server does when it has started.
    for _ in range(rounds):
        for engine in random.sample(engines, len(engines)):
            engine.step()
    Scheduler._update_after_schedule = patched
    return {
        "running": running,
        "context": prompt,
        "rounds": rounds,
        "us": {e.mode: {part: quartiles(e.us[part]) for part in PARTS} for e in engines},
    }


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table of the figures."""
    yield "| | " + " | ".join(MODES) + " |"
    yield "|---" * (len(MODES) + 1) + "|"
    for result in results:
        for part in PARTS:
            medians = [result["us"][mode][part]["median"] for mode in MODES]
            cells = " | ".join(f"{us:.0f} us ({us / medians[0]:.2f} x)" for us in medians)
            load = f"{result['running']} requests of {result['context']} tokens"
            yield f"| {part}, {load} | {cells} |"


def main() -> None:
    """Measure, print a table, and write JSON and a page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--page", type=Path, help="page whose table is replaced by this one")
    arguments = parser.parse_args()
    with recorder_store() as folder:
        from routereplay.patches.vllm.attach import process_exporter
        from routereplay.patches.vllm.install import install

        install()
        model = make(folder / "model", SMALL)
        before = cpu_ticks()
        result = {
            "machine": f"{os.cpu_count()} CPUs, Python {platform.python_version()}",
            "loads": [
                measure(model, running, prompt, arguments.rounds)
                for running, prompt in ((256, 512), (32, 8192))
            ],
        }
        result["steal"] = steal_share(before)
        process_exporter().close()
    print("\n".join(table(result["loads"])))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.page:
        write_table(arguments.page, "step_cost", table(result["loads"]))


if __name__ == "__main__":
    main()
