"""What the ranks of a scoring job are told, and what becomes of what they write."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from routereplay.client.packed import PackedRoutes
from routereplay.parity.errors import EngineFailed
from routereplay.parity.packed_rows import PackedRow
from routereplay.parity.scored import Scored
from routereplay.parity.topology import Topology


class Pass(msgspec.Struct, frozen=True):
    """One scoring of some rows, routed live or replayed."""

    name: str
    replay: bool
    rows: list[int]


class Job(msgspec.Struct, frozen=True):
    """A model, how it is spread, and what it scores."""

    checkpoint: str
    device: str
    """`cpu` or `cuda`."""
    dtype: str
    tp: int
    pp: int
    ep: int
    canary_every: int
    passes: list[Pass]

    @property
    def topology(self) -> Topology:
        """How the model is spread."""
        return Topology(self.tp, self.pp, self.ep)

    def sizes(self) -> dict[str, Any]:
        """Return the fields of `TransformerConfig` that the topology sets."""
        return self.topology.group_sizes() | {"sequence_parallel": self.tp > 1}

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Read the job that `run_job` wrote."""
        return msgspec.json.decode((folder / "job.json").read_bytes(), type=cls)


def run_job(
    job: Job, rows: Sequence[PackedRow], tokens: int, *, timeout_s: float = 600.0
) -> dict[str, Scored]:
    """Score `rows` in processes of their own and return what each pass found.

    Args:
        tokens: N, of all trajectories.

    Raises:
        EngineFailed: a rank ended with an error, or the time is up; with its last lines.
    """
    with tempfile.TemporaryDirectory(prefix="routereplay-parity-") as name:
        folder = Path(name)
        (folder / "job.json").write_bytes(msgspec.json.encode(job))
        _save_rows(rows, folder)
        _run_ranks(job, folder, timeout_s)
        return {one.name: _merge(one, job, folder, tokens, rows) for one in job.passes}


def load_rows(folder: Path) -> list[PackedRow]:
    """Read the rows that `run_job` wrote."""
    with np.load(folder / "rows.npz", allow_pickle=False) as file:
        count, num_experts = (int(value) for value in file["count"])
        return [
            PackedRow(
                file[f"tokens_{i}"],
                file[f"bounds_{i}"],
                file[f"flat_{i}"],
                PackedRoutes(
                    file[f"experts_{i}"], file[f"live_{i}"], file[f"padding_{i}"], num_experts
                ),
            )
            for i in range(count)
        ]


def _save_rows(rows: Sequence[PackedRow], folder: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "count": np.array([len(rows), rows[0].routes.num_experts]),
    }
    for i, row in enumerate(rows):
        arrays[f"tokens_{i}"], arrays[f"bounds_{i}"] = row.token_ids, row.cu_seqlens
        arrays[f"flat_{i}"], arrays[f"experts_{i}"] = row.flat, row.routes.experts
        arrays[f"live_{i}"], arrays[f"padding_{i}"] = row.routes.live, row.routes.padding
    np.savez(folder / "rows.npz", **arrays)  # type: ignore[arg-type]


def _run_ranks(job: Job, folder: Path, timeout_s: float) -> None:
    # Ranks whose threads are more than the cores spin, and take minutes for seconds of work.
    threads = min(max((os.cpu_count() or 1) // (2 * job.topology.world_size), 1), 8)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    logs = [folder / f"rank-{rank}.log" for rank in range(job.topology.world_size)]
    processes = []
    for rank, path in enumerate(logs):
        with path.open("wb") as log:
            command = [sys.executable, "-m", "routereplay.parity.megatron_rank"]
            processes.append(
                subprocess.Popen(
                    [*command, str(folder), str(rank)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                )
            )
    deadline = time.monotonic() + timeout_s
    try:
        while any(process.poll() is None for process in processes):
            failed = [rank for rank, process in enumerate(processes) if process.poll()]
            if failed or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    if any(codes):
        rank = next(rank for rank, code in enumerate(codes) if code)
        blamed = next((rank for rank, code in enumerate(codes) if code > 0), rank)
        tail = "\n".join(logs[blamed].read_text(errors="replace").splitlines()[-40:])
        msg = f"Megatron ({job.topology}) ended with {codes}; last lines of rank {blamed}:\n{tail}"
        raise EngineFailed(msg, topology=str(job.topology))


def _merge(one: Pass, job: Job, folder: Path, tokens: int, rows: Sequence[PackedRow]) -> Scored:
    _, layers, topk = rows[0].routes.experts.shape
    scored = Scored.empty(tokens, layers, topk)
    for rank in range(job.topology.world_size):
        with np.load(folder / f"{one.name}-{rank}.npz", allow_pickle=False) as file:
            where = file["token"]
            if where.size:
                scored.logprobs[where] = file["logprob"]
                scored.top.ids[where] = file["top_id"]
                scored.top.logprobs[where] = file["top_logprob"]
            found = file["row"]
            scored.experts[np.ix_(found, file["layers"])] = file["experts"]
            scored.routed[found] = True
    return scored
