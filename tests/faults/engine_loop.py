"""A stand-in for vLLM's engine loop, in a process of its own: it drives the real recorder.

A step every 5 ms, as if the device were busy meanwhile; requests begin at a rate, bring the
rows of their prompt and then one row a step, and end. What it did and what the recorder says
is written to files in a folder, so that it can be killed at any time:

    ended    names of requests that were sealed
    acked    names of records that the store acknowledged, as the recorder logged them
    steps    a line for each step: phase, monotonic seconds at its end, microseconds
    report   the last JSON report

Commands come on standard input, a line each: `phase NAME`, `rate PER_SECOND`, `report`,
`python CODE` and `end`.

With `$ROUTEREPLAY_ENABLED=0` it is its own twin: the same load and no recorder.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import zlib
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from routereplay.patches.vllm.exporter import Exporter
from routereplay.patches.vllm.record import ModelFacts
from routereplay.patches.vllm.recorder import Recorder
from routereplay.patches.vllm.settings import Settings

STEP_S = 0.005
COMPLETION = 6
MODEL = ModelFacts("stand-in", num_layers=64, topk=8, num_experts=128)
_POOL = np.random.default_rng(0).integers(0, MODEL.num_experts, 1 << 22).astype("u1")


def prompt_len(name: str) -> int:
    """Most prompts have 60 tokens (30 KB of routes); one in sixteen has 2000 (1 MB)."""
    return 2000 if zlib.crc32(name.encode()) % 16 == 0 else 60


def expected_rows(name: str) -> np.ndarray:
    """The routes of a request, `[tokens, layers, topk]`: a function of its name alone."""
    rows = prompt_len(name) + COMPLETION - 1
    nbytes = rows * MODEL.row_nbytes
    start = zlib.crc32(b"rows" + name.encode()) % (len(_POOL) - nbytes)
    return _POOL[start : start + nbytes].reshape(rows, MODEL.num_layers, MODEL.topk)


def expected_tokens(name: str) -> list[int]:
    """The token ids of a request, prompt and completion."""
    first = zlib.crc32(b"tokens" + name.encode()) % 100_000
    return list(range(first, first + prompt_len(name) + COMPLETION))


class Loop:
    """The engine loop and the recorder it drives."""

    def __init__(self, folder: Path, prefix: str, rate: float) -> None:
        self.records = os.environ.get("ROUTEREPLAY_ENABLED") != "0"
        self.folder = folder
        self.prefix = prefix
        self.rate = rate
        self.phase = "start"
        self.commands: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.exporter = Exporter(Settings.from_env(os.environ))
        self.recorder = Recorder(MODEL, self.exporter, keep_native=False)
        self.states: dict[str, SimpleNamespace] = {}
        self.live: deque[tuple[str, str]] = deque()
        self.made = 0
        self.due = 0.0
        self.unbalanced = 0
        self.samples = 0
        self.most_held = 0
        self.files = {
            name: (folder / name).open("a", buffering=1) for name in ("ended", "acked", "steps")
        }
        if self.records:
            threading.Thread(target=self._sample, daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self) -> None:
        began = time.monotonic()
        while True:
            start = time.perf_counter()
            time.sleep(STEP_S)
            self.step()
            micros = (time.perf_counter() - start) * 1e6
            self.files["steps"].write(f"{self.phase} {time.monotonic():.3f} {micros:.0f}\n")
            now = time.monotonic()
            self.due += self.rate * (now - began)
            began = now
            while not self.commands.empty():
                if not self.obey(self.commands.get()):
                    return

    def step(self) -> None:
        while self.due >= 1.0:
            self.due -= 1.0
            self.begin()
        outputs, ends = [], []
        for name, request_id in self.live:
            state = self.states[request_id]
            tokens, rows = expected_tokens(name), state.rows
            done = len(state.detokenizer.output_token_ids)
            first = 0 if done == 0 else prompt_len(name) + done - 1
            count = prompt_len(name) + done - first
            # A copy, as vLLM's arrays are fresh ones.
            fresh = rows[first : first + count].copy()
            token = tokens[prompt_len(name) + done]
            is_last = done + 1 == COMPLETION
            ends.append((name, request_id, token, is_last))
            outputs.append(
                SimpleNamespace(
                    request_id=request_id,
                    new_token_ids=[token],
                    routed_experts=fresh,
                    finish_reason="length" if is_last else None,
                )
            )
        before = len(self.states)
        taken = self.recorder.take(outputs) if self.records else None
        for _, request_id, token, is_last in ends:
            self.states[request_id].detokenizer.output_token_ids.append(token)
            if is_last:
                del self.states[request_id]
        if self.records:
            self.recorder.settle(taken, outputs, self.states, before)
        for name, _, _, is_last in ends:
            if is_last:
                self.files["ended"].write(name + "\n")
        self.live = deque((name, i) for name, i in self.live if i in self.states)

    def begin(self) -> None:
        name = f"{self.prefix}-{os.getpid()}-{self.made}"
        self.made += 1
        tokens: list[int] = []
        request = SimpleNamespace(
            request_id=f"0_{name}",
            external_req_id=name,
            prompt_token_ids=expected_tokens(name)[: prompt_len(name)],
            prompt_embeds=None,
            sampling_params=SimpleNamespace(n=1, extra_args=None, routed_experts_prompt_start=None),
            lora_request=None,
            arrival_time=time.time(),
            resumable=False,
            session_id=None,
        )
        self.states[request.request_id] = state = SimpleNamespace(
            parent_req=None,
            request_index=0,
            rows=expected_rows(name),
            detokenizer=SimpleNamespace(
                output_token_ids=tokens, num_output_tokens=lambda: len(tokens)
            ),
        )
        if self.records:
            self.recorder.request_added(request, state)
        self.live.append((name, request.request_id))

    def obey(self, command: str) -> bool:
        word, _, rest = command.partition(" ")
        if word == "phase":
            self.phase = rest
        elif word == "rate":
            self.rate, self.due = float(rest), 0.0
        elif word == "python":
            exec(rest, {"loop": self, "os": os})
        elif word == "end":
            return False
        self.report()
        return True

    def report(self) -> None:
        stats = self.exporter.stats()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        report = {
            **stats.to_dict(),
            "unbalanced": self.unbalanced,
            "samples": self.samples,
            "most_held": self.most_held,
            "rss": pages * os.sysconf("SC_PAGE_SIZE"),
            "files": len(os.listdir("/proc/self/fd")),
            "live": len(self.live),
            "at": time.monotonic(),
        }
        # In place: a test may let every rename of this process fail.
        (self.folder / "report").write_text(json.dumps(report))

    def _sample(self) -> None:
        """Look at the identity all the time, as a scrape could."""
        while True:
            stats = self.exporter.stats()
            self.samples += 1
            self.unbalanced += bool(stats.balance.rows or stats.balance.nbytes)
            self.most_held = max(self.most_held, stats.queued.nbytes + stats.in_flight.nbytes)
            time.sleep(0.002)

    def _listen(self) -> None:
        for line in sys.stdin:
            self.commands.put(line.rstrip("\n"))
        # Whoever started it is gone.
        self.commands.put("end")


class _Acked(logging.Handler):
    def __init__(self, file) -> None:
        super().__init__(logging.DEBUG)
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("sealed "):
            self._file.write(f"{record.args[0]}\n")


def main(folder: str, prefix: str, rate: str) -> None:
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s", level=logging.INFO)
    loop = Loop(Path(folder), prefix, float(rate))
    delivery = logging.getLogger("routereplay.patches.vllm.delivery")
    delivery.setLevel(logging.DEBUG)
    delivery.addHandler(_Acked(loop.files["acked"]))
    logging.getLogger().handlers[0].setLevel(logging.INFO)
    # As vLLM: SIGTERM unwinds, and what is registered for the end runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        loop.report()
        loop.run()
    finally:
        loop.exporter.close()
        loop.report()


if __name__ == "__main__":
    main(*sys.argv[1:])
