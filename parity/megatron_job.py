"""What the ranks of a scoring job are told, and what becomes of what they write."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from routereplay.client.packed import PackedRoutes
from routereplay.parity.packed_rows import PackedRow
from routereplay.parity.rank_running import run_ranks
from routereplay.parity.scored import Scored
from routereplay.parity.stages import load_stages
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
    timeout_s: float
    """Of the whole job; of a single collective too, so that no rank outlives it."""
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
    job: Job, rows: Sequence[PackedRow], tokens: int
) -> tuple[dict[str, Scored], dict[str, float]]:
    """Score `rows` in processes of their own.

    Args:
        tokens: N, of all trajectories.

    Returns:
        What each pass found, and the seconds after which rank 0 had reached each stage.

    Raises:
        EngineFailed: a rank ended with an error, or the time is up; with its last lines,
            and with the stacks of all ranks in the second case.
    """
    with tempfile.TemporaryDirectory(prefix="routereplay-parity-") as name:
        folder = Path(name)
        (folder / "job.json").write_bytes(msgspec.json.encode(job))
        _save_rows(rows, folder)
        run_ranks(job.topology, folder, job.timeout_s)
        found = {one.name: _merge(one, job, folder, tokens, rows) for one in job.passes}
        return found, load_stages(folder / "stages-0.json")


def load_rows(folder: Path) -> list[PackedRow]:
    """Read the rows that `run_job` wrote."""
    with np.load(folder / "rows.npz", allow_pickle=False) as file:
        count, num_experts = (int(value) for value in file["count"])
        rows = []
        for i in range(count):
            routes = None
            if num_experts:
                routes = PackedRoutes(
                    file[f"experts_{i}"], file[f"live_{i}"], file[f"padding_{i}"], num_experts
                )
            rows.append(
                PackedRow(file[f"tokens_{i}"], file[f"bounds_{i}"], file[f"flat_{i}"], routes)
            )
        return rows


def _save_rows(rows: Sequence[PackedRow], folder: Path) -> None:
    routed = rows[0].routes
    arrays: dict[str, np.ndarray] = {
        "count": np.array([len(rows), routed.num_experts if routed else 0]),
    }
    for i, row in enumerate(rows):
        arrays[f"tokens_{i}"], arrays[f"bounds_{i}"] = row.token_ids, row.cu_seqlens
        arrays[f"flat_{i}"] = row.flat
        if row.routes is not None:
            arrays[f"experts_{i}"], arrays[f"live_{i}"] = row.routes.experts, row.routes.live
            arrays[f"padding_{i}"] = row.routes.padding
    np.savez(folder / "rows.npz", **arrays)  # type: ignore[arg-type]


def _merge(one: Pass, job: Job, folder: Path, tokens: int, rows: Sequence[PackedRow]) -> Scored:
    routed = rows[0].routes
    layers, topk = routed.experts.shape[1:] if routed else (0, 0)
    scored = Scored.empty(tokens, layers, topk)
    for rank in range(job.topology.world_size):
        with np.load(folder / f"{one.name}-{rank}.npz", allow_pickle=False) as file:
            where = file["token"]
            if where.size:
                scored.logprobs[where] = file["logprob"]
                scored.top.ids[where] = file["top_id"]
                scored.top.logprobs[where] = file["top_logprob"]
            if routed is None:
                continue
            found = file["row"]
            scored.experts[np.ix_(found, file["layers"])] = file["experts"]
            scored.routed[found] = True
    return scored
