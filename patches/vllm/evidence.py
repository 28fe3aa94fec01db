"""What real routes look like, and what vLLM returns in their place when capture fails.

A failed capture keeps the right shape: rows are all zero, or stay what another step left
behind. Nothing here needs the model's weights: the top-k of a router names k different
experts, and tokens that differ are not all routed alike in a whole layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from routereplay.patches.vllm.record import ModelFacts

_ALL_ZERO = "every id of every row is zero: the kernels bypass vLLM's capture"


def routed_layers(rows_TLK: np.ndarray) -> tuple[int, ...]:
    """Return the layers of `[tokens, layers, topk]` that have any id but zero."""
    return tuple(np.flatnonzero(rows_TLK.any(axis=(0, 2))).tolist())


def doubts(
    steps: Sequence[np.ndarray], model: ModelFacts, token_ids: Sequence[int], prompt_len: int
) -> list[str]:
    """Return why the rows of one generation cannot be real routes; an empty list if they can.

    Args:
        steps: the rows that came with each engine step, `[tokens, layers, topk]`.
        model: sizes that they must have.
        token_ids: prompt and completion; the last one has no row.
        prompt_len: how many of them are the prompt.
    """
    wrong = _misshapen(steps, model, token_ids)
    if wrong:
        return [wrong]
    rows_TLK = np.concatenate(steps)
    return [
        *_impossible(rows_TLK, model),
        *_unlikely(rows_TLK, token_ids[:-1], prompt_len),
    ]


def impossible(
    steps: Sequence[np.ndarray], model: ModelFacts, token_ids: Sequence[int]
) -> list[str]:
    """Return those of the `doubts` that no weights can explain, be they placeholders."""
    wrong = _misshapen(steps, model, token_ids)
    return [wrong] if wrong else list(_impossible(np.concatenate(steps), model))


def _misshapen(
    steps: Sequence[np.ndarray], model: ModelFacts, token_ids: Sequence[int]
) -> str | None:
    if not steps:
        return "no row came with any step of the engine"
    row, dtype = (model.num_layers, model.topk), np.dtype(model.dtype)
    for rows_TLK in steps:
        if rows_TLK.shape[1:] != row or rows_TLK.dtype != dtype:
            found = f"rows {rows_TLK.shape[1:]} of {rows_TLK.dtype}"
            return f"{found} came; expected {row} of {dtype}"
    came, due = sum(map(len, steps)), len(token_ids) - 1
    if came != due:
        return f"{came} rows came for {len(token_ids)} tokens; expected {due}"
    return None


def _impossible(rows_TLK: np.ndarray, model: ModelFacts) -> Iterator[str]:
    highest = int(rows_TLK.max())
    if highest >= model.num_experts:
        yield f"a row names expert {highest} of a model that has {model.num_experts}"
    layers = routed_layers(rows_TLK)
    # One expert for each token may well be the first of all.
    if not layers and model.topk > 1:
        yield _ALL_ZERO
    chosen_LTK = np.sort(rows_TLK[:, layers].swapaxes(0, 1), axis=-1)
    twice = (chosen_LTK[..., 1:] == chosen_LTK[..., :-1]).any(axis=(1, 2))
    if twice.any():
        named = _few([layers[n] for n in np.flatnonzero(twice)])
        yield f"layers {named} name an expert twice for one token"


def _unlikely(rows_TLK: np.ndarray, token_ids: Sequence[int], prompt_len: int) -> Iterator[str]:
    layers = routed_layers(rows_TLK)
    if not layers:
        if rows_TLK.shape[-1] == 1:
            yield _ALL_ZERO
        return
    chosen_LTK = {layer: np.sort(rows_TLK[:, layer], axis=-1) for layer in layers}
    alike = [n for n, rows in chosen_LTK.items() if (rows == rows[0]).all()]
    if alike and len(set(token_ids)) > 1:
        yield f"layers {_few(alike)} route every token alike"
    decoded = rows_TLK[prompt_len:]
    if len(set(token_ids[prompt_len:])) > 1 and (decoded == decoded[:1]).all():
        yield f"the rows of {len(decoded)} generated tokens are one and the same row"
    first: dict[bytes, int] = {}
    for layer, rows in chosen_LTK.items():
        other = first.setdefault(rows.tobytes(), layer)
        if other != layer:
            yield f"layers {other} and {layer} have the same rows"
            return


def _few(layers: Sequence[int], limit: int = 8) -> str:
    shown = ", ".join(map(str, layers[:limit]))
    return shown if len(layers) <= limit else f"{shown}, ... ({len(layers)} in all)"
