"""Where the three hottest paths spend their time: `python -m route_store.profiles`.

Needs py-spy, which is not among our packages. Of each path the sidecar and the client (or the
recorder's sender) are sampled while it runs, native frames included, and what they were doing
themselves is kept by its share in `results/profiles/`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from route_store import data
from route_store.cases import LARGE_ROWS, SHORT_TURN_ROWS, TRAJECTORIES, TURNS
from route_store.store import Store, running

FOLDER = Path(__file__).parents[1] / "results" / "profiles"
_KEPT = 30
_WAITING = ("poll (", "epoll_pwait (", "epoll_wait (", "futex", "pthread_cond_timedwait")
_LOCKED = "PyThread_acquire_lock"
"""A thread of a pool that has nothing to do."""
_PLACE = re.compile(r"\(([^()]*)\)$")
_ADDRESS = re.compile(r"^0x[0-9a-f]+ ")


def main() -> None:
    """Profile each path for a while, and write what both sides did."""
    parser = argparse.ArgumentParser(prog="python -m route_store.profiles", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each path")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER)
    given = parser.parse_args()
    if shutil.which("py-spy") is None:
        sys.exit("py-spy is not there; `pip install py-spy` brings it")
    given.output.mkdir(parents=True, exist_ok=True)
    for name, prepare in _PATHS.items():
        with running() as store:
            operation = prepare(store)
            operation()
            pids = {"sidecar": store.pids["server"][0], "client": os.getpid()}
            with contextlib.ExitStack() as stack:
                for side, pid in pids.items():
                    out = given.output / f"{name}.{side}.txt"
                    stack.enter_context(_sampled(pid, out, f"{name}, {side}"))
                ends_at = time.monotonic() + given.seconds
                while time.monotonic() < ends_at:
                    operation()


def _ingest(store: Store) -> Callable[[], object]:
    (turn,) = data.conversation(1, LARGE_ROWS)

    def run() -> None:
        request_id = data.fresh_id("p")
        store.put(turn, request_id)
        store.client.delete_request(request_id)

    return run


def _fetch(store: Store) -> Callable[[], object]:
    store.put(*data.conversation(1, LARGE_ROWS), "fetched")
    return lambda: store.client.fetch_request("fetched")


def _batch(store: Store) -> Callable[[], object]:
    names = [f"batch-{number}" for number in range(TRAJECTORIES)]
    for seed, name in enumerate(names):
        for number, turn in enumerate(data.conversation(TURNS, SHORT_TURN_ROWS, seed)):
            store.put(turn, f"{name}-{number}", name)
    return lambda: store.client.fetch_trajectories(names)


_PATHS: dict[str, Callable[[Store], Callable[[], object]]] = {
    "ingest": _ingest,
    "fetch": _fetch,
    "batch": _batch,
}


@contextlib.contextmanager
def _sampled(pid: int, out: Path, title: str) -> Iterator[None]:
    """Sample the threads of a process that are on a CPU; write the shares of what they did."""
    with tempfile.NamedTemporaryFile(suffix=".raw") as raw:
        command = ["py-spy", "record", "--native", "--full-filenames", "--rate", "100"]
        command += ["--format", "raw", "--output", raw.name, "--pid", str(pid)]
        spy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            spy.send_signal(signal.SIGINT)
            spy.wait(60)
        out.write_text(_shares(Path(raw.name).read_text(), title))


def _shares(stacks: str, title: str) -> str:
    """Return the frames with most samples of their own, each with the frame of ours above it."""
    own: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = stack.split(";")
        leaf = _short(frames[-1])
        if not leaf.startswith(_WAITING) and _LOCKED not in stack:
            ours = next((_short(f) for f in reversed(frames) if "/routereplay/" in f), leaf)
            own[leaf if ours == leaf else f"{leaf}  <-  {ours}"] += int(samples)
    total = sum(own.values())
    lines = [f"{title}: {total} samples; share, what ran itself  <-  our frame above it"]
    lines += [f"{count / total:6.1%}  {name}" for name, count in own.most_common(_KEPT)]
    return "\n".join(lines) + "\n"


def _short(frame: str) -> str:
    """Return a frame without folders of this machine, and without addresses."""
    place = _PLACE.search(frame)
    if place is None:
        return frame
    path = place[1].rpartition("/routereplay/")[2].split("/")
    path = path if "/routereplay/" in place[1] else path[-2:]
    return _ADDRESS.sub("", frame[: place.start()]) + f"({'/'.join(path)})"


if __name__ == "__main__":
    main()
