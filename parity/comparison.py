"""The table: how far what Megatron scores is from what vLLM sampled, replay off and on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from routereplay.parity.metrics import (
    TopLogprobs,
    mean_abs_error,
    mean_abs_pct,
    route_mismatch,
    top1_agreement,
    top_kl,
    top_overlap,
)
from routereplay.parity.sampled import SampledTokens
from routereplay.parity.scored import Scored
from routereplay.parity.scoring import PackedScores


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Megatron against vLLM over the sampled tokens; see `routereplay.parity.metrics`."""

    mean_abs_pct: float
    mae: float
    top1_agreement: float
    top20_overlap: float
    top20_kl: float
    """KL(Megatron || vLLM) in nats; the gates look at this one."""
    top20_kl_reverse: float
    """KL(vLLM || Megatron) in nats."""
    rows_differ: float | None
    """Share of recorded rows with a layer whose expert set differs; None without routes."""
    choices_differ: float | None
    """Share of single expert choices that differ, over rows and MoE layers."""
    layers_differ: tuple[float, ...]
    """Of each MoE layer, the share of recorded rows whose expert set differs."""


LINES = (
    ("mean_abs_pct", "mean abs difference of log-probs, % of their mean", "{:.3f} %"),
    ("mae", "mean abs difference of log-probs, nats", "{:.6f}"),
    ("top1_agreement", "top-1 token agrees", "{:.4f}"),
    ("top20_overlap", "top-20 tokens overlap", "{:.4f}"),
    ("top20_kl", "top-20 KL(Megatron || vLLM), nats", "{:.3e}"),
    ("top20_kl_reverse", "top-20 KL(vLLM || Megatron), nats", "{:.3e}"),
    ("rows_differ", "rows with a differing expert set", "{:.2%}"),
    ("choices_differ", "expert choices that differ", "{:.2%}"),
)
"""Of each line of the table: the field, its words, its format."""


def in_words(value: float | None, form: str) -> str:
    """Return a figure of the table as text; None is one that a dense model does not have."""
    return "no routes" if value is None else form.format(value)


def compare(
    scores: PackedScores,
    sampled: SampledTokens,
    executed: np.ndarray,
    recorded: np.ndarray,
    recorded_rows: np.ndarray,
) -> Mismatch:
    """Return the mismatch of one scoring pass.

    Args:
        scores: Megatron's, of the whole packed row.
        sampled: the engine's, of the sampled tokens.
        executed, recorded: `[T, L, K]` experts of Megatron's routers and of the engine;
            L is 0 for a dense model.
        recorded_rows: `[T]` bool, rows that have a recorded route.

    Raises:
        ValueError: a sampled token has no score.
    """
    index = {int(position): row for row, position in enumerate(scores.positions)}
    missing = [int(p) for p in sampled.positions if int(p) not in index]
    if missing:
        msg = f"{len(missing)} sampled tokens have no score, the first at row {missing[0]}"
        raise ValueError(msg)
    rows = np.array([index[int(position)] for position in sampled.positions])
    top = TopLogprobs(scores.top.ids[rows], scores.top.logprobs[rows])
    moe_layers = recorded[recorded_rows].any(axis=(0, 2))
    routes = None
    if moe_layers.any():
        routes = route_mismatch(
            executed[recorded_rows][:, moe_layers], recorded[recorded_rows][:, moe_layers]
        )
    return Mismatch(
        mean_abs_pct=mean_abs_pct(scores.logprobs[rows], sampled.logprobs),
        mae=mean_abs_error(scores.logprobs[rows], sampled.logprobs),
        top1_agreement=top1_agreement(top, sampled.top),
        top20_overlap=top_overlap(top, sampled.top),
        top20_kl=top_kl(top, sampled.top),
        top20_kl_reverse=top_kl(sampled.top, top),
        rows_differ=routes.rows if routes else None,
        choices_differ=routes.choices if routes else None,
        layers_differ=tuple(float(share) for share in routes.per_layer) if routes else (),
    )


def compare_scored(candidate: Scored, target: Scored) -> Mismatch:
    """Return how far `candidate` is from `target` where the target has log-probs and routes.

    Raises:
        ValueError: the candidate has no score where the target has one.
    """
    where = np.flatnonzero(~np.isnan(target.logprobs))
    scores = PackedScores(
        np.flatnonzero(~np.isnan(candidate.logprobs)),
        candidate.logprobs[~np.isnan(candidate.logprobs)],
        TopLogprobs(*(part[~np.isnan(candidate.logprobs)] for part in candidate.top)),
    )
    said = SampledTokens(
        where, target.logprobs[where], TopLogprobs(*(part[where] for part in target.top))
    )
    rows = candidate.routed & target.routed
    return compare(scores, said, candidate.experts, target.experts, rows)


def render(columns: Mapping[str, Mismatch]) -> str:
    """Return the table as text, a column for each entry of `columns`, and a line of each layer."""
    width = max(len(text) for _, text, _ in LINES)
    wide = [max(16, len(name) + 2) for name in columns]
    lines = [" " * width + _cells(list(columns), wide)]
    for name, text, form in LINES:
        values = [in_words(getattr(column, name), form) for column in columns.values()]
        lines.append(f"{text:<{width}}" + _cells(values, wide))
    by_layer = list(zip(*(column.layers_differ for column in columns.values()), strict=True))
    if by_layer:
        lines.append("expert sets that differ, by MoE layer")
    for layer, shares in enumerate(by_layer, start=1):
        values = [f"{share:.2%}" for share in shares]
        lines.append(f"{layer:>{width}}" + _cells(values, wide))
    return "\n".join(lines)


def _cells(values: Sequence[str], wide: Sequence[int]) -> str:
    return "".join(f"{value:>{width}}" for value, width in zip(values, wide, strict=True))
