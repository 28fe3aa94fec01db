"""Routes for people: a summary in text, a file in numpy's own format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from routereplay.wire.routes import RoutedExperts


def summarize(turns: Sequence[RoutedExperts]) -> str:
    """Return one paragraph for each record."""
    return "\n\n".join(_summary(turn) for turn in turns)


def save(path: Path, turns: Sequence[RoutedExperts]) -> None:
    """Write `.npz`: for each record `experts_i`, `token_ids_i` and `token_start_i`."""
    arrays: dict[str, np.ndarray] = {}
    for index, turn in enumerate(turns):
        arrays[f"experts_{index}"] = turn.experts
        arrays[f"token_ids_{index}"] = turn.token_ids
        arrays[f"token_start_{index}"] = np.asarray(turn.token_start)
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _summary(turn: RoutedExperts) -> str:
    manifest = turn.manifest
    lines = [
        f"{manifest.request_id}  choice {manifest.choice}  {manifest.finish_reason}",
        f"  trajectory  {manifest.trajectory_id or '-'}",
        f"  model       {manifest.model}: {manifest.num_layers} layers, "
        f"top {manifest.topk} of {manifest.num_experts} experts",
        f"  tokens      {manifest.prompt_len} prompt + {manifest.completion_len} completion",
        f"  rows        {turn.token_start}:{turn.token_stop}, {turn.experts.nbytes} bytes"
        + ("" if manifest.complete else "  INCOMPLETE"),
    ]
    for layer, plane in enumerate(np.moveaxis(turn.experts, 1, 0), start=turn.layer_start):
        lines.append(f"  layer {layer:>3}   {_load(plane, manifest.num_experts)}")
    return "\n".join(lines)


def _load(plane: np.ndarray, num_experts: int) -> str:
    """Return how evenly one layer's tokens fall on the experts."""
    if plane.size == 0 or not plane.any():
        return "dense"
    counts = np.bincount(plane.reshape(-1), minlength=num_experts)
    busiest = int(counts.argmax())
    return (
        f"{int((counts > 0).sum())} of {num_experts} experts used, busiest {busiest} "
        f"with {counts[busiest] / counts.sum():.1%} of the choices"
    )
