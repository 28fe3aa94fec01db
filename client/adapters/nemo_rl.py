"""NeMo-RL: `routed_experts` of the messages of a message log.

Written against nemo_rl/models/generation/interfaces.py and models/megatron/router_replay.py of
August 2026: `[tokens, layers, topk]` beside each message's `token_ids`, in the narrowest
signed dtype, -1 where the model's own router decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from routereplay.client.adapters.rollout import Rollout, fetch_rollouts, rows_of
from routereplay.client.blocking_client import RouteStoreClient
from routereplay.client.packed import ModelShape
from routereplay.client.stitching import MissingPolicy

_TRAINED_ROLE = "assistant"
_NO_ROUTE = -1


def fill_message_logs(
    store: RouteStoreClient,
    message_logs: Sequence[Sequence[dict[str, Any]]],
    trajectory_ids: Sequence[str],
    *,
    wait_s: float = 30.0,
    model: ModelShape | None = None,
    missing: MissingPolicy = "raise",
) -> None:
    """Set `routed_experts` of each message: `[tokens, layers, topk]` int8, int16 or int32.

    Args:
        store: where vLLM's routes are.
        message_logs: `batch["message_log"]`; each message has `role` and `token_ids`.
        trajectory_ids: one for each log.
        wait_s: for turns that are on their way.
        model: raises unless the routes are of a model of this shape.
        missing: `"live"` gives rows that were lost to the router, which NeMo-RL counts.

    The last token of a log has no route, nor has what follows the last answer; these rows
    are -1, NeMo-RL's own mark.

    Raises:
        ValueError: not one id for each log.
        as `fetch_rollouts` and `rows_of`.
    """
    import torch

    if len(trajectory_ids) != len(message_logs):
        msg = f"{len(trajectory_ids)} trajectory ids for {len(message_logs)} message logs"
        raise ValueError(msg)
    rollouts = [_rollout(log, name) for log, name in zip(message_logs, trajectory_ids, strict=True)]
    routes = fetch_rollouts(store, rollouts, wait_s=wait_s, missing=missing)
    for log, one, rows_TLK in zip(message_logs, routes, rows_of(routes, model=model), strict=True):
        experts = rows_TLK.astype(_carry_dtype(one.num_experts))
        experts[one.missing] = _NO_ROUTE
        start = 0
        for message in log:
            stop = start + len(message["token_ids"])
            message["routed_experts"] = torch.from_numpy(experts[start:stop].copy())
            start = stop


def _rollout(log: Sequence[dict[str, Any]], trajectory_id: str) -> Rollout:
    pieces = [np.asarray(message["token_ids"]) for message in log]
    trained = [
        np.full(len(piece), message["role"] == _TRAINED_ROLE)
        for piece, message in zip(pieces, log, strict=True)
    ]
    return Rollout(np.concatenate(pieces), trajectory_id, loss_mask=np.concatenate(trained))


def _carry_dtype(num_experts: int) -> type[np.signedinteger]:
    """Return what NeMo-RL's `resolve_routed_experts_dtype` does for a known model."""
    for dtype in (np.int8, np.int16):
        if num_experts - 1 <= np.iinfo(dtype).max:
            return dtype
    return np.int32
