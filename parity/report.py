"""What a parity run found, as numbers: columns, their spread over samplings, points to plot.

Shape legend: N sampled tokens.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from routereplay.parity.column_names import (
    DENSE_SCORES,
    ENGINE_AGAIN,
    MEGATRON_AGAIN,
    REPLAY_OFF,
    REPLAY_ON,
    kind_of,
)
from routereplay.parity.comparison import Mismatch, render
from routereplay.parity.measurement import Measured

_BINS = 16
_POINTS = 1500


def facts_of(measured: Measured) -> tuple[dict[str, Any], str]:
    """Return everything that JSON and page show, and the table as text."""
    columns = measured.columns()
    each = [measured.columns(index) for index in range(len(measured.samplings))]
    facts: dict[str, Any] = {
        "samplings": len(measured.samplings),
        "trajectories": sum(len(one.rollouts) for one in measured.samplings),
        "tokens": int(measured.bounds[-1]),
        "sampled_tokens": int((~np.isnan(measured.sampled.logprobs)).sum()),
        "columns": {name: asdict(column) for name, column in columns.items()},
        "megatron_stages_s": measured.stages,
        "by_sampling": [
            {"seed": one.seed, "columns": {name: asdict(c) for name, c in found.items()}}
            for one, found in zip(measured.samplings, each, strict=True)
        ],
        "notes": _notes(columns),
        "ratios": ratios(columns),
        "ratios_by_sampling": [ratios(found) for found in each],
        "by_position": _by_position(measured),
        "points": _points(measured),
    }
    return facts, render(columns)


def ratios(columns: dict[str, Mismatch]) -> dict[str, float]:
    """Return how much smaller replay makes the mismatch, and how it stands to the engine's own.

    Nothing of a dense model, which has no replay.
    """
    if REPLAY_ON not in columns:
        return {}
    off, on, again = columns[REPLAY_OFF], columns[REPLAY_ON], columns[ENGINE_AGAIN]
    return {
        "kl_off_over_on": _ratio(off.top20_kl, on.top20_kl),
        "kl_on_over_engine_again": _ratio(on.top20_kl, again.top20_kl),
        "mean_abs_pct_off_over_on": _ratio(off.mean_abs_pct, on.mean_abs_pct),
        "mean_abs_pct_on_over_engine_again": _ratio(on.mean_abs_pct, again.mean_abs_pct),
    }


def _notes(columns: dict[str, Mismatch]) -> list[str]:
    """Return what a reader must know to read the columns."""
    notes = []
    again = columns[ENGINE_AGAIN]
    if again.mae == 0 and again.top20_kl == 0:
        notes.append(
            "vLLM again is 0: reading the same tokens anew, past its prefix cache, gave the same "
            "bits as sampling them. No other engine can be at such a floor; Megatron again is "
            "the one to hold replay against."
        )
    return notes


def _ratio(left: float, right: float) -> float:
    return float(left / right) if right else float("nan")


def _by_position(measured: Measured) -> dict[str, Any]:
    """Return the mean absolute difference of log-probs by position in the trajectory."""
    positions = np.concatenate(
        [rollout.sampled.positions for one in measured.samplings for rollout in one.rollouts]
    )
    where = np.flatnonzero(~np.isnan(measured.sampled.logprobs))
    edges = np.linspace(0, int(positions.max()) + 1, _BINS + 1)
    bins = np.digitize(positions, edges[1:-1])
    found: dict[str, Any] = {"edges": [float(edge) for edge in edges]}
    for name, scored in measured.passes.items():
        if kind_of(name) == MEGATRON_AGAIN or np.isnan(scored.logprobs[where]).any():
            continue
        apart = np.abs(scored.logprobs[where] - measured.sampled.logprobs[where])
        found[name] = [
            float(apart[bins == b].mean()) if (bins == b).any() else None for b in range(_BINS)
        ]
    return found


def _points(measured: Measured) -> dict[str, list[list[float]]]:
    """Return `[vLLM's log-prob, Megatron's]` of tokens spread evenly over all that were sampled."""
    where = np.flatnonzero(~np.isnan(measured.sampled.logprobs))
    where = where[np.linspace(0, len(where) - 1, min(_POINTS, len(where))).astype(int)]
    return {
        name: [
            [round(float(left), 5), round(float(right), 5)]
            for left, right in zip(
                measured.sampled.logprobs[where], measured.passes[name].logprobs[where], strict=True
            )
        ]
        for name in (DENSE_SCORES, REPLAY_OFF, REPLAY_ON)
        if name in measured.passes
    }
