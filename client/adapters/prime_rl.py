"""prime-rl: `TrainingSample.routed_experts`.

Written against src/prime_rl/transport/types.py of August 2026: a `RoutedExperts` of raw
bytes, a shape `[tokens, layers, topk]` and a dtype name, for one branch of a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from routereplay.client.adapters.rollout import Rollout, fetch_rollouts, rows_of
from routereplay.client.blocking_client import RouteStoreClient
from routereplay.client.packed import ModelShape


def fill_samples(
    store: RouteStoreClient,
    samples: Sequence[Any],
    trajectory_ids: Sequence[str] | None = None,
    *,
    make: Callable[..., Any],
    wait_s: float = 30.0,
    model: ModelShape | None = None,
) -> None:
    """Set `routed_experts` of each sample, uint8 up to 256 experts else uint16.

    Args:
        store: where vLLM's routes are.
        samples: with `token_ids` and `mask`, one for each branch of a trace.
        trajectory_ids: the `X-Session-ID` of each sample's requests; their `trace_id`,
            which verifiers sends, without.
        make: `prime_rl.transport.types.RoutedExperts`.
        wait_s: for turns that are on their way.
        model: raises unless the routes are of a model of this shape.

    Other branches of a trace have other tokens; that is no error here, a token of a branch
    without its route is.

    Raises:
        ValueError: a sample has no id, or not one id for each was given.
        as `fetch_rollouts` and `rows_of`.
    """
    ids = [s.trace_id for s in samples] if trajectory_ids is None else list(trajectory_ids)
    if len(ids) != len(samples) or not all(ids):
        msg = (
            f"{len(samples)} samples with the trajectory ids {ids}; this prime-rl does not keep "
            "trace_id, pass trajectory_ids, what the client sent as X-Session-ID"
        )
        raise ValueError(msg)
    rollouts = [
        Rollout(sample.token_ids, name, loss_mask=sample.mask)
        for sample, name in zip(samples, ids, strict=True)
    ]
    routes = fetch_rollouts(store, rollouts, wait_s=wait_s, branches="allow")
    for sample, rows_TLK in zip(samples, rows_of(routes, model=model), strict=True):
        shape = list(rows_TLK.shape)
        dtype = rows_TLK.dtype.name
        sample.routed_experts = make(data=rows_TLK.tobytes(), shape=shape, dtype=dtype)
