"""slime and miles: `Sample.rollout_routed_experts`.

Written against slime/utils/types.py and miles/utils/types.py of August 2026; both train on
`[tokens - 1, layers, topk]` int32 (`--use-rollout-routing-replay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from routereplay.client.adapters.rollout import Rollout, fetch_rollouts, rows_of
from routereplay.client.blocking_client import RouteStoreClient
from routereplay.client.packed import ModelShape


def fill_samples(
    store: RouteStoreClient,
    samples: Sequence[Any],
    trajectory_ids: Sequence[str] | None = None,
    *,
    wait_s: float = 30.0,
    model: ModelShape | None = None,
) -> None:
    """Set `rollout_routed_experts` of each sample.

    Args:
        store: where vLLM's routes are.
        samples: with `tokens`, `response_length`, and `loss_mask` of the response or None.
        trajectory_ids: one for each sample; their `session_id` without.
        wait_s: for turns that are on their way.
        model: raises unless the routes are of a model of this shape.

    Raises:
        ValueError: a sample has no id, or not one id for each was given.
        as `fetch_rollouts` and `rows_of`.
    """
    ids = [s.session_id for s in samples] if trajectory_ids is None else list(trajectory_ids)
    if len(ids) != len(samples) or not all(ids):
        msg = (
            f"{len(samples)} samples with the trajectory ids {ids}; send each sample's "
            "session_id to vLLM as the X-Session-ID header, or pass trajectory_ids"
        )
        raise ValueError(msg)
    rollouts = [_rollout(sample, name) for sample, name in zip(samples, ids, strict=True)]
    rows = rows_of(fetch_rollouts(store, rollouts, wait_s=wait_s), model=model)
    for sample, rows_TLK in zip(samples, rows, strict=True):
        sample.rollout_routed_experts = rows_TLK[:-1].astype(np.int32)


def _rollout(sample: Any, trajectory_id: str) -> Rollout:
    trained = [1] * sample.response_length if sample.loss_mask is None else sample.loss_mask
    prompt = len(sample.tokens) - len(trained)
    return Rollout(sample.tokens, trajectory_id, loss_mask=[0] * prompt + list(trained))
