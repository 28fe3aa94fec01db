"""What the recorder costs the process that serves: microseconds a step, and event-loop lag.

Real parts of vLLM: its `OutputProcessor` with our patches, `EngineCoreRequest`,
`EngineCoreOutput`, detokenizers and output queues; and a real route store in another
process that takes what is recorded. Only the engine is missing: its outputs are made here,
so that nothing but the front end is measured.

Three processors get the same steps in random order: capture off, the recorder, and vLLM's
own way with routes. Run it alone: `python benchmarks/recorder_cost.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from route_store.processes import cpu_ticks, free_port, server, steal_share

LAYERS, TOPK, EXPERTS = 48, 8, 128
ROW_NBYTES = LAYERS * TOPK
MODES = ("off", "recorder", "native")
PROMPT_TOKENS = 32_768

_numbers = itertools.count()


class FrontEnd:
    """One engine front end: vLLM's output processor, with or without a recorder.

    Args:
        mode: `off`, `recorder` or `native`.
        tokenizer: of the detokenizers.
        streamed: clients read every token, or one answer at the end.
    """

    def __init__(self, mode: str, tokenizer: Any, *, streamed: bool) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor

        from routereplay.patches.vllm.attach import RECORDER, process_exporter
        from routereplay.patches.vllm.record import ModelFacts
        from routereplay.patches.vllm.recorder import Recorder

        self.mode = mode
        self._streamed = streamed
        self.processor = OutputProcessor(tokenizer, log_stats=False)
        self.own_us: list[float] = []
        self._queues: dict[str, Any] = {}
        if mode == "recorder":
            facts = ModelFacts("bench", LAYERS, TOPK, EXPERTS)
            recorder = Recorder(facts, process_exporter(), keep_native=False)
            self.processor.__dict__[RECORDER] = Watched(recorder, self.own_us)

    def add(self, prompt: list[int], trajectory: str | None = None, max_tokens: int = 64) -> str:
        """Accept a request as AsyncLLM does; return its internal id."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.engine.output_processor import RequestOutputCollector

        kind = RequestOutputKind.DELTA if self._streamed else RequestOutputKind.FINAL_ONLY
        name = f"cmpl-{self.mode}.{next(_numbers)}-0"
        request = EngineCoreRequest(
            request_id=f"{name}-internal",
            prompt_token_ids=prompt,
            mm_features=None,
            sampling_params=SamplingParams(max_tokens=max_tokens, output_kind=kind),
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            external_req_id=name,
            session_id=trajectory,
        )
        queue = RequestOutputCollector(kind, request.request_id)
        self._queues[request.request_id] = queue
        self.processor.add_request(request, None, None, 0, queue)
        self.left_out = request.sampling_params.routed_experts_prompt_start
        self.request = request
        return request.request_id

    def step(self, outputs: list[Any]) -> float:
        """Process one step's outputs; return the microseconds it took."""
        begun = time.perf_counter_ns()
        self.processor.process_outputs(outputs)
        took_us = (time.perf_counter_ns() - begun) / 1000
        for output in outputs:
            answer = self._queues[output.request_id].get_nowait()
            if output.finish_reason is not None:
                del self._queues[output.request_id]
                self.answer = answer
        return took_us

    def close(self) -> None:
        """End what still runs, as clients that leave."""
        self.processor.abort_requests(list(self._queues), internal=True)

    def outputs(self, rows_of: dict[str, np.ndarray], ending: Sequence[str] = ()) -> list[Any]:
        """Return a step's outputs, one token each; the rows only if they are captured."""
        from vllm.v1.engine import EngineCoreOutput, FinishReason

        return [
            EngineCoreOutput(
                request_id=request,
                new_token_ids=[7],
                routed_experts=None if self.mode == "off" else rows,
                finish_reason=FinishReason.LENGTH if request in ending else None,
            )
            for request, rows in rows_of.items()
        ]


class Watched:
    """A recorder whose time in a step is taken."""

    def __init__(self, recorder: Any, own_us: list[float]) -> None:
        self._recorder = recorder
        self._own_us = own_us

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder, name)

    def take(self, outputs: Any) -> Any:
        """Do what the recorder does before vLLM looks at a step."""
        begun = time.perf_counter_ns()
        taken = self._recorder.take(outputs)
        self._took_ns = time.perf_counter_ns() - begun
        return taken

    def settle(self, *arguments: Any) -> None:
        """Do what it does after."""
        begun = time.perf_counter_ns()
        self._recorder.settle(*arguments)
        self._own_us.append((self._took_ns + time.perf_counter_ns() - begun) / 1000)


def steps(tokenizer: Any, running: int, rounds: int) -> dict[str, Any]:
    """Return microseconds of a decode step with `running` requests."""
    fronts = [FrontEnd(mode, tokenizer, streamed=True) for mode in MODES]
    prompt = [5] * 128
    live = {
        front.mode: [front.add(prompt, max_tokens=10**6) for _ in range(running)]
        for front in fronts
    }
    filled = routes(running * 128).reshape(running, 128, LAYERS, TOPK)
    for front in fronts:
        front.step(front.outputs(dict(zip(live[front.mode], filled, strict=True))))
        front.own_us.clear()
    took: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(rounds):
        decoded = routes(running)[:, None]
        for front in random.sample(fronts, len(fronts)):
            outputs = front.outputs(dict(zip(live[front.mode], decoded, strict=True)))
            took[front.mode].append(front.step(outputs))
            time.sleep(0.004)  # The engine computes; the exporter thread has the interpreter.
    for front in fronts:
        front.close()
    own_us = next(front.own_us for front in fronts if front.mode == "recorder")
    return {
        "running": running,
        "rounds": rounds,
        "step_us": {mode: quartiles(took[mode]) for mode in MODES},
        "recorder_own_us": quartiles(own_us),
    }


def arrivals(tokenizer: Any, rounds: int) -> dict[str, Any]:
    """Return microseconds of accepting a prompt of 32k tokens that goes on a known turn."""
    random_ids = np.random.default_rng(0).integers(0, 500, PROMPT_TOKENS)
    prompt = [int(token) for token in random_ids]
    took: dict[str, list[float]] = {"off": [], "recorder": []}
    fronts = [FrontEnd(mode, tokenizer, streamed=True) for mode in took]
    rows = routes(len(prompt))
    for number in range(rounds):
        for front in random.sample(fronts, 2):
            trajectory = f"arrival-{front.mode}-{number}"
            first = front.add(prompt[:-64], trajectory)
            front.step(front.outputs({first: rows[:-64]}, ending=[first]))
            begun = time.perf_counter_ns()
            second = front.add([*prompt], trajectory)
            took[front.mode].append((time.perf_counter_ns() - begun) / 1000)
            if front.mode == "recorder" and front.left_out != len(prompt) - 64:
                msg = f"the second turn left {front.left_out} rows out"
                raise RuntimeError(msg)
            front.step(front.outputs({second: rows[front.left_out :]}, ending=[second]))
    return {"prompt_tokens": PROMPT_TOKENS, "accept_us": {m: quartiles(took[m]) for m in took}}


async def lag(tokenizer: Any, running: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Return how late a task of the event loop wakes up while prompts of 32k tokens arrive.

    A step of `running` requests every 20 ms, and with every tenth of them the rows of a whole
    prompt; vLLM's own way then makes its answer of them, as its server does on the loop.
    Each figure is the median over the rounds, which another load on the machine moves least.
    """
    late: dict[str, list[list[float]]] = {mode: [] for mode in MODES}
    prompts = dict.fromkeys(MODES, 0)
    for _ in range(rounds):
        for mode in random.sample(MODES, len(MODES)):
            front = FrontEnd(mode, tokenizer, streamed=False)
            late[mode].append([])
            ticking = asyncio.create_task(_tick(late[mode][-1]))
            prompts[mode] += await _serve(front, running, seconds)
            ticking.cancel()
            front.close()
            await asyncio.sleep(0.5)  # What is queued goes out before the next one is measured.
    return {
        "running": running,
        "seconds": seconds * rounds,
        "prompts": prompts,
        "prompt_bytes": PROMPT_TOKENS * ROW_NBYTES,
        "late_ms": {
            mode: {
                name: statistics.median(float(np.percentile(one, share)) for one in late[mode])
                for name, share in (("p50", 50), ("p99", 99), ("p99.9", 99.9), ("max", 100))
            }
            for mode in MODES
        },
    }


async def _tick(late_ms: list[float], every_s: float = 0.001) -> None:
    while True:
        due = time.perf_counter() + every_s
        await asyncio.sleep(every_s)
        late_ms.append((time.perf_counter() - due) * 1000)


async def _serve(front: FrontEnd, running: int, seconds: float) -> int:
    prompt = [5] * PROMPT_TOKENS
    live = [front.add([5] * 128, max_tokens=10**6) for _ in range(running)]
    rows, decoded = routes(PROMPT_TOKENS), routes(running)[:, None]
    filled = routes(running * 128).reshape(running, 128, LAYERS, TOPK)
    front.step(front.outputs(dict(zip(live, filled, strict=True))))
    ends_at = time.perf_counter() + seconds
    for number in itertools.count():
        if time.perf_counter() > ends_at:
            return number // 10
        await asyncio.sleep(0.02)
        front.step(front.outputs(dict(zip(live, decoded, strict=True))))
        if number % 10 == 0:
            request = front.add(prompt)
            front.step(front.outputs({request: rows}, ending=[request]))
            if front.mode == "native":
                _answer_natively(front.answer)
    return 0


def _answer_natively(answer: Any) -> None:
    from vllm.utils.serial_utils import numpy2base64

    (output,) = answer.outputs
    json.dumps({"choices": [{"routed_experts": numpy2base64(output.routed_experts)}]})


def routes(tokens: int) -> np.ndarray:
    """Return `[tokens, 48, 8]` uint8 of valid experts."""
    return np.random.default_rng(1).integers(0, EXPERTS, (tokens, LAYERS, TOPK), dtype=np.uint8)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return median, quartiles and 99th percentile."""
    low, middle, high = statistics.quantiles(values, n=4)
    p99 = float(np.percentile(values, 99))
    return {"median": middle, "q1": low, "q3": high, "p99": p99}


def table(result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a Markdown table of the figures."""
    cost = result["steps"]
    off = cost["step_us"]["off"]["median"]
    yield "| | capture off | recorder | vLLM's own way |"
    yield "|---|---|---|---|"
    medians = [cost["step_us"][mode]["median"] for mode in MODES]
    cells = " | ".join(f"{us:.0f} us ({us / off:.2f} x)" for us in medians)
    yield f"| one step of {cost['running']} requests | {cells} |"
    own = cost["recorder_own_us"]
    yield (
        f"| of it in the recorder | | {own['median']:.0f} us "
        f"({own['median'] / cost['running']:.2f} us a request; p99 {own['p99']:.0f} us) | |"
    )
    accept = result["arrivals"]["accept_us"]
    yield (
        f"| accept a turn of {result['arrivals']['prompt_tokens']} tokens | "
        f"{accept['off']['median']:.0f} us | {accept['recorder']['median']:.0f} us | |"
    )
    late = result["lag"]["late_ms"]
    for name in ("p50", "p99", "p99.9", "max"):
        cells = " | ".join(f"{late[mode][name]:.2f} ms" for mode in MODES)
        yield f"| event loop late, {name} | {cells} |"


def write_table(page: Path, name: str, lines: Iterable[str]) -> None:
    """Put a table between its marks on a page."""
    begin, end = (f"<!-- {name}: {mark} -->\n" for mark in ("begin", "end"))
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text("".join([before, begin, "\n".join(lines), "\n", end, after]))


@contextmanager
def recorder_store() -> Iterator[Path]:
    """Run a route store that the recorder of this process sends to; yield its folder."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        server(
            ["-m", "routereplay.cli", "serve", "--port", str(port)],
            port,
            ROUTEREPLAY_DURABILITY="memory",
            ROUTEREPLAY_DATA_DIR=folder,
        ),
    ):
        os.environ["ROUTEREPLAY_STORE_URL"] = f"http://127.0.0.1:{port}"
        yield Path(folder)


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--lag-seconds", type=float, default=2.0, help="of each mode and round")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--page", type=Path, help="page whose table is replaced by this one")
    arguments = parser.parse_args()
    with recorder_store() as folder:
        from transformers import AutoTokenizer
        from vllm.utils.gc_utils import freeze_gc_heap

        from routereplay.parity.tiny_moe import write_tiny_moe
        from routereplay.patches.vllm.attach import process_exporter
        from routereplay.patches.vllm.install import install

        install()
        tokenizer = AutoTokenizer.from_pretrained(write_tiny_moe(folder / "model"))
        freeze_gc_heap()  # As vLLM's server does when it has started.
        before = cpu_ticks()
        result = {
            "machine": f"{os.cpu_count()} CPUs, Python {platform.python_version()}",
            "row_bytes": ROW_NBYTES,
            "steps": steps(tokenizer, arguments.running, arguments.rounds),
            "arrivals": arrivals(tokenizer, 25),
            "lag": asyncio.run(lag(tokenizer, arguments.running, arguments.lag_seconds, 7)),
        }
        result["steal"] = steal_share(before)
        process_exporter().close()
        stats = process_exporter().stats()
        result["rows"] = {"captured": stats.captured.rows, "acked": stats.acked.rows}
    print("\n".join(table(result)))
    print(f"rows captured {stats.captured.rows}, in the store {stats.acked.rows}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.page:
        write_table(arguments.page, "recorder_cost", table(result))


if __name__ == "__main__":
    main()
