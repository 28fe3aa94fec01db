"""What the recorder costs a step where it stands: in the front end, or in the engine's loop.

The same decode steps of vLLM's `EngineCoreOutput`s go through both taps in random order, and a
real route store takes what is recorded. `PYTHONPATH=benchmarks ./scripts/run-python
benchmarks/engine_tap_cost.py`.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import numpy as np
from recorder_cost import EXPERTS, LAYERS, TOPK, quartiles, recorder_store, routes

PROMPT = [5] * 128


class Tapped:
    """Requests that run, behind one of the taps."""

    def __init__(self, name: str, recorder: Any, running: int) -> None:
        from vllm import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        from routereplay.patches.vllm.engine_tap import EngineState, EngineTap

        self.tap = EngineTap(recorder, None)
        self.states: dict[str, Any] = {}
        for number in range(running):
            request = EngineCoreRequest(
                request_id=f"cmpl-{name}.{number}-internal",
                prompt_token_ids=PROMPT,
                mm_features=None,
                sampling_params=SamplingParams(max_tokens=10**6),
                pooling_params=None,
                arrival_time=time.time(),
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
                external_req_id=f"cmpl-{name}.{number}",
            )
            self.states[request.request_id] = EngineState("")
            recorder.request_added(request, self.states[request.request_id])

    def outputs(self, rows: np.ndarray) -> list[Any]:
        """Return a step's outputs, one token each; `rows`: `[requests, tokens, layers, topk]`."""
        from vllm.v1.engine import EngineCoreOutput

        return [
            EngineCoreOutput(request_id=name, new_token_ids=[7], routed_experts=rows_TLK)
            for name, rows_TLK in zip(self.states, rows, strict=True)
        ]


def main() -> None:
    """Measure and print microseconds of a step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    with recorder_store():
        from routereplay.patches.vllm.attach import process_exporter
        from routereplay.patches.vllm.record import ModelFacts
        from routereplay.patches.vllm.recorder import Recorder

        exporter, facts = process_exporter(), ModelFacts("bench", LAYERS, TOPK, EXPERTS)
        taps = {
            name: Tapped(
                name,
                Recorder(facts, exporter, keep_native=False, in_engine=name == "engine"),
                arguments.running,
            )
            for name in ("front end", "engine")
        }
        for tapped in taps.values():
            prompt = routes(arguments.running * len(PROMPT))
            tapped.tap.step(tapped.outputs(prompt.reshape(arguments.running, -1, LAYERS, TOPK)))
        took: dict[str, list[float]] = {name: [] for name in taps}
        for _ in range(arguments.rounds):
            rows = routes(arguments.running)[:, None]
            for name in random.sample(list(taps), 2):
                tapped, outputs = taps[name], taps[name].outputs(rows)
                begun = time.perf_counter_ns()
                if name == "engine":
                    tapped.tap.step(outputs)
                else:
                    recorder = tapped.tap.recorder
                    taken = recorder.take(outputs)
                    recorder.settle(taken, outputs, tapped.states, len(tapped.states))
                took[name].append((time.perf_counter_ns() - begun) / 1000)
                time.sleep(0.004)  # The engine computes; the exporter thread has the interpreter.
        exporter.close()
    print(f"| a step of {arguments.running} requests | median | p99 |\n|---|---|---|")
    for name, microseconds in took.items():
        cost = quartiles(microseconds)
        print(f"| recorder in the {name} | {cost['median']:.0f} us | {cost['p99']:.0f} us |")


if __name__ == "__main__":
    main()
