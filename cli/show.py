"""Routes for people: a table, JSON, files of arrays, a picture.

Shape legend: L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer

from routereplay.cli.heatmap import write_heat_map
from routereplay.wire.load import expert_counts, layer_loads, without_dense
from routereplay.wire.routes import RoutedExperts

_SHADES = " ▁▂▃▄▅▆▇█"
_STRIP = 32
"""Characters of a layer's strip of shades."""


def print_turns(turns: Sequence[RoutedExperts]) -> None:
    """Print what each record is and how its rows fall on the experts, layer by layer."""
    typer.echo("\n\n".join(_summary(turn) for turn in turns))


def describe(turn: RoutedExperts) -> dict[str, Any]:
    """Return a record without its routes, JSON-able: ids, sizes, loads of its layers."""
    manifest = turn.manifest
    return {
        "request_id": manifest.request_id,
        "choice": manifest.choice,
        "trajectory_id": manifest.trajectory_id,
        "model": manifest.model,
        "finish_reason": manifest.finish_reason,
        "prompt_len": manifest.prompt_len,
        "completion_len": manifest.completion_len,
        "token_start": turn.token_start,
        "token_stop": turn.token_stop,
        "bytes": turn.experts.nbytes,
        "complete": manifest.complete,
        "policy_versions": sorted({span.version for span in manifest.policy_versions}),
        "layers": [
            {"layer": layer, **load._asdict()}
            for layer, load in enumerate(layer_loads(counts_of(turn)), start=turn.layer_start)
        ],
    }


def counts_of(turn: RoutedExperts) -> np.ndarray:
    """Return `[layers, experts]`: how often each fetched layer chose each expert."""
    return without_dense(expert_counts(turn.experts, turn.manifest.num_experts))


def save(path: Path, turns: Sequence[RoutedExperts]) -> None:
    """Write `.npz`, `.safetensors` or `.png`, by the name of `path`.

    Arrays are, for each record, `experts_i`, `token_ids_i` and `token_start_i`; a picture is
    one heat map a record, layers down and experts across.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
        OSError: the file cannot be written.
    """
    if path.suffix == ".png":
        write_heat_map(path, [counts_of(turn) for turn in turns])
        return
    arrays: dict[str, np.ndarray] = {}
    for index, turn in enumerate(turns):
        arrays[f"experts_{index}"] = np.ascontiguousarray(turn.experts)
        arrays[f"token_ids_{index}"] = np.ascontiguousarray(turn.token_ids)
        arrays[f"token_start_{index}"] = np.asarray(turn.token_start)
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(arrays, path)
        return
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
    counts_LE = counts_of(turn)
    for layer, load in enumerate(layer_loads(counts_LE), start=turn.layer_start):
        if not len(turn.experts):
            break
        if load.used == 0:
            lines.append(f"  layer {layer:>3}   dense")
            continue
        lines.append(
            f"  layer {layer:>3}   {_strip(counts_LE[layer - turn.layer_start])}  "
            f"{load.used} of {manifest.num_experts} experts, busiest {load.busiest} "
            f"with {load.max_over_mean:.1f} x the mean, entropy {load.entropy:.2f}"
        )
    return "\n".join(lines)


def _strip(counts_E: np.ndarray) -> str:
    """Return the load of the experts in order, as shades of blocks of them."""
    groups = [group.mean() for group in np.array_split(counts_E, min(_STRIP, len(counts_E)))]
    highest = max(groups) or 1.0
    return "".join(_SHADES[round(load / highest * (len(_SHADES) - 1))] for load in groups)
