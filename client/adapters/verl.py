"""verl: `routed_experts` of an agent loop's output, or of a padded batch.

Written against verl 0.9.1: `AgentLoopOutput.routed_experts` (experimental/agent_loop/
agent_loop.py) and `batch["routed_experts"]`, which `router_replay.mode="R3"` replays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from routereplay.client.adapters.rollout import Rollout, fetch_rollouts, rows_of
from routereplay.client.blocking_client import RouteStoreClient
from routereplay.client.packed import ModelShape


def with_trajectory(sampling_params: dict[str, Any], trajectory_id: str) -> dict[str, Any]:
    """Return verl's sampling parameters with the id under which vLLM's routes are recorded.

    Pass them to `LLMServerClient.generate` for every turn of one rollout; another
    rollout of the same prompt needs another id.
    """
    extra_args = {**(sampling_params.get("extra_args") or {}), "trajectory_id": trajectory_id}
    return {**sampling_params, "extra_args": extra_args}


def fill_output(
    store: RouteStoreClient,
    output: Any,
    trajectory_id: str,
    *,
    wait_s: float = 30.0,
    model: ModelShape | None = None,
) -> None:
    """Set `routed_experts` of an `AgentLoopOutput`: `[tokens - 1, layers, topk]` int16.

    Args:
        store: where vLLM's routes are.
        output: with `prompt_ids`, `response_ids` and `response_mask`, as a loop returns it.
        trajectory_id: that of `with_trajectory`.
        wait_s: for turns that are on their way.
        model: raises unless the routes are of a model of this shape.

    Raises:
        as `fetch_rollouts` and `rows_of`.
    """
    mask = [0] * len(output.prompt_ids) + list(output.response_mask)
    tokens = [*output.prompt_ids, *output.response_ids]
    rollout = Rollout(tokens, trajectory_id, loss_mask=mask)
    (rows_TLK,) = rows_of(fetch_rollouts(store, [rollout], wait_s=wait_s), model=model)
    # The row of the last token is verl's own to add: it never has one.
    output.routed_experts = rows_TLK[:-1].astype(np.int16)


def fill_batch(
    store: RouteStoreClient,
    batch: Any,
    trajectory_ids: Sequence[str],
    *,
    wait_s: float = 30.0,
    model: ModelShape | None = None,
) -> None:
    """Set `batch["routed_experts"]`: `[B, prompt + response, layers, topk]` int16.

    Args:
        store: where vLLM's routes are.
        batch: a `DataProto`, or the TensorDict in it, padded as `generate_sequences` returns
            it: `input_ids` and `attention_mask` `[B, prompt + response]`, `response_mask`
            `[B, response]`.
        trajectory_ids: one for each row of the batch.
        wait_s: for turns that are on their way.
        model: raises unless the routes are of a model of this shape.

    Rows of padding are zero, as verl's own; it removes them before the model.

    Raises:
        ValueError: not one id for each row.
        as `fetch_rollouts` and `rows_of`; the sample is the row of the batch.
    """
    import torch

    tensors = getattr(batch, "batch", batch)
    input_ids = tensors["input_ids"].cpu().numpy()
    real = tensors["attention_mask"].cpu().numpy().astype(bool)
    if len(trajectory_ids) != len(input_ids):
        msg = f"{len(trajectory_ids)} trajectory ids for a batch of {len(input_ids)} rows"
        raise ValueError(msg)
    sampled = np.zeros_like(real)
    response_mask = tensors["response_mask"].cpu().numpy().astype(bool)
    sampled[:, input_ids.shape[1] - response_mask.shape[1] :] = response_mask
    rollouts = [
        Rollout(tokens[mask], str(trajectory_id), loss_mask=trained[mask])
        for tokens, mask, trained, trajectory_id in zip(
            input_ids, real, sampled, trajectory_ids, strict=True
        )
    ]
    rows = rows_of(fetch_rollouts(store, rollouts, wait_s=wait_s), model=model)
    experts = np.zeros((*input_ids.shape, *rows[0].shape[1:]), np.int16)
    for out, mask, rows_TLK in zip(experts, real, rows, strict=True):
        out[mask] = rows_TLK
    tensors["routed_experts"] = torch.from_numpy(experts).to(tensors["input_ids"].device)
