"""The stand-in engine loop as a test holds it, and the oracle of its records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import numpy as np
from faults.engine_loop import expected_rows, expected_tokens
from support.store_processes import until

from routereplay.client._decode import decode_routes
from routereplay.wire.records import FetchRequest, RequestKey

ROOT = Path(__file__).parents[2]
LOAD = "40 requests/s, 3.5 MB/s"
RATE = 40.0
DRAINED = "drained"
TWINS = os.environ.get("ROUTEREPLAY_FAULTS") == "all"
"""Whether each loop has a twin without a recorder beside it, to compare its steps with."""


class EngineLoop:
    """A process that records; `with EngineLoop(folder, url, spool_dir=...) as loop`."""

    def __init__(
        self, folder: Path, url: str, *, rate: float = RATE, within=(), **settings: object
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log = (folder / "log").open("a")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ROUTEREPLAY_")}
        settings = {"retry_ceiling_s": 1, "flush_timeout_s": 3, **settings, "store_url": url}
        environment |= {f"ROUTEREPLAY_{k.upper()}": str(v) for k, v in settings.items()}
        environment["PYTHONPATH"] = f"{ROOT / '.editable'}:{ROOT / 'tests'}"
        command = [*within, sys.executable, "-m", "faults.engine_loop"]

        def start(where: Path, **more: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [*command, str(where), folder.name, str(rate)],
                env=environment | more,
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                text=True,
            )

        self._twin: subprocess.Popen[str] | None = None
        if TWINS:
            (folder / "twin").mkdir()
            self._twin = start(folder / "twin", ROUTEREPLAY_ENABLED="0", ROUTEREPLAY_SPOOL_DIR="")
        self.process = start(folder)
        until(lambda: self._report() is not None or self._ended(), 60)
        self._files_at_start = self._report()["files"]

    def __enter__(self) -> EngineLoop:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        if self._twin is not None:
            self._twin.kill()
            self._twin.communicate()
        self._log.close()

    def _ended(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the loop ended: {self.log()}")
        return False

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def tell(self, command: str) -> None:
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def tell_both(self, command: str) -> None:
        """Tell the loop and its twin."""
        self.tell(command)
        if self._twin is not None:
            self._twin.stdin.write(command + "\n")
            self._twin.stdin.flush()

    def _report(self) -> dict | None:
        try:
            return json.loads((self.folder / "report").read_text())
        except (FileNotFoundError, ValueError):
            return None  # Not written, or being written.

    def report(self) -> dict:
        """What the recorder says now."""
        asked = time.monotonic()
        self.tell("report")
        found = until(
            lambda: ((r := self._report()) and r["at"] >= asked and r) or self._ended(), 30, 0.01
        )
        assert found["unbalanced"] == 0, f"{found['unbalanced']} of {found['samples']} samples"
        return found

    def last_report(self) -> dict:
        """What it said at its end."""
        return self._report()

    def until(self, look, timeout_s: float = 60.0) -> dict:
        """Wait until `look(report)` is true; return that report."""
        found = {}

        def looks():
            found.update(self.report())
            return look(found)

        try:
            until(looks, timeout_s, 0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}\n{self.log()[-2000:]}") from None
        return found

    def drain(self, timeout_s: float = 90.0) -> dict:
        """Stop the load and wait until nothing waits and no descriptor is left behind."""
        self.tell_both(f"phase {DRAINED}")
        self.tell_both("rate 0")
        report = self.until(lambda r: not r["live"] and not waiting_rows(r), timeout_s)
        # A connection, the spool's lock, and what is open just now.
        assert report["files"] <= self._files_at_start + 6, report["files"]
        return report

    def end(self, timeout_s: float = 30.0) -> float:
        """End it in the ordinary way; return the seconds that took."""
        began = time.monotonic()
        self.tell("end")
        self.process.wait(timeout_s)
        return time.monotonic() - began

    def signal(self, number: int, timeout_s: float = 30.0) -> float:
        """Send a signal and wait for the end; return the seconds that took."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout_s)
        return time.monotonic() - began

    def names(self, kind: str) -> list[str]:
        path = self.folder / kind
        return path.read_text().split() if path.exists() else []

    def steps(self) -> dict[str, list[float]]:
        """Microseconds of the steps of each phase."""
        found: dict[str, list[float]] = {}
        for phase, _, micros in read_steps(self.folder):
            found.setdefault(phase, []).append(micros)
        return found

    def paired_steps(self) -> tuple[list[float], list[float]] | None:
        """Microseconds of the steps with the recorder and without, while both were under load.

        None without a twin.
        """
        if self._twin is None:
            return None
        both = [
            [(at, micros) for phase, at, micros in read_steps(folder) if phase != DRAINED]
            for folder in (self.folder, self.folder / "twin")
        ]
        start, stop = max(one[0][0] for one in both), min(one[-1][0] for one in both)
        ours, theirs = ([micros for at, micros in one if start < at <= stop] for one in both)
        return ours, theirs


def read_steps(folder: Path) -> Iterator[tuple[str, float, float]]:
    """Phase, monotonic seconds and microseconds of each step."""
    for line in (folder / "steps").read_text().splitlines():
        phase, at, micros = line.split(" ")
        yield phase, float(at), float(micros)


def waiting_rows(report: dict) -> int:
    """Rows that wait for the store."""
    return sum(report[place]["rows"] for place in ("queued", "in_flight", "spooled"))


def rejoined(loop, heal):
    """End a fault; return the seconds until the store took something again."""
    before = loop.report()["acked"]["rows"]
    heal()
    began = time.monotonic()
    loop.until(lambda r: r["acked"]["rows"] > before)
    return time.monotonic() - began


@dataclass
class Found:
    """What a store holds of the requests that a loop ended."""

    right: set[str] = field(default_factory=set)
    wrong: set[str] = field(default_factory=set)
    dropped: dict[str, str] = field(default_factory=dict)
    """Name to what the store says."""
    absent: set[str] = field(default_factory=set)


def look_up(url: str, names: list[str]) -> Found:
    """Ask a store for every request and compare it with what was recorded."""
    found = Found()
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for start in range(0, len(names), 64):
            batch = names[start : start + 64]
            body = FetchRequest(requests=tuple(RequestKey(id=name) for name in batch))
            answer = http.post("/v1/fetch", content=msgspec.json.encode(body))
            assert answer.status_code == 200, answer.text
            header, items = decode_routes(answer.content)
            for routes in items:
                name = routes.manifest.request_id
                is_right = np.array_equal(routes.experts, expected_rows(name)) and (
                    routes.token_ids.tolist() == expected_tokens(name)
                )
                (found.right if is_right else found.wrong).add(name)
            for failure in header.failures:
                if failure.code == "dropped":
                    found.dropped[failure.id] = failure.message
                else:
                    found.absent.add(failure.id)
    return found


def judge(verdict, url: str, *loops: EngineLoop, dropped: bool = False) -> Found:
    """Fill in a verdict: what was acknowledged must be there, what ended must be explained."""
    for loop in loops:
        verdict.compare(loop.paired_steps())
    ended = {name for loop in loops for name in loop.names("ended")}
    acked = {name for loop in loops for name in loop.names("acked")}
    found = look_up(url, sorted(ended | acked))
    verdict.acked += len(acked)
    verdict.lost += len(acked - found.right)
    verdict.wrong += len(found.wrong)
    verdict.load = verdict.load or LOAD
    assert acked, [loop.log() for loop in loops]
    assert not found.absent, (
        f"{len(found.absent)} ended without a trace: {sorted(found.absent)[:5]}"
    )
    if not dropped:
        assert not found.dropped, list(found.dropped.items())[:5]
    return found


def compare_steps(loop: EngineLoop, fault, heal, seconds: float = 1.5, pairs: int = 4) -> str:
    """Switch a fault on and off in turns and compare the p99 of the steps; return a note.

    Both see the same neighbours on the machine, which is noisy: three tries, and the best counts.
    """
    ratios = []
    for number in range(3):
        for _ in range(pairs):
            for phase, switch in (("fault", fault), ("sound", heal)):
                switch()
                time.sleep(0.3)
                loop.tell(f"phase {phase}{number}")
                time.sleep(seconds)
                loop.tell("phase between")
        loop.report()
        steps = loop.steps()
        fault_p99, sound_p99 = (
            float(np.percentile(steps[f"{phase}{number}"], 99)) for phase in ("fault", "sound")
        )
        ratios.append((fault_p99 / sound_p99, fault_p99, sound_p99))
        if ratios[-1][0] <= 1.05:
            break
    ratio, fault_p99, sound_p99 = min(ratios)
    assert ratio <= 1.05, f"p99 of a step with the fault over without: {ratios}"
    return (
        f"p99 of a step {fault_p99 / 1000:.2f} ms, {sound_p99 / 1000:.2f} ms without ({ratio:.2f}x)"
    )
