"""ART: the `art_moe_routing` metadata of the choices of a trajectory.

Written against openpipe-art 0.5.23: `art/preprocessing/moe_routing.py` reads it from
`choice.model_extra` and aligns it by token ids when a trajectory is tokenized.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from routereplay.client.adapters.rollout import Rollout, fetch_rollouts, rows_of
from routereplay.client.blocking_client import RouteStoreClient
from routereplay.client.packed import ModelShape

_METADATA = "art_moe_routing"


class _Answer(NamedTuple):
    """One sampled choice, its tokens, and what finds its routes."""

    choice: Any
    prompt_ids: list[int]
    completion_ids: list[int]
    trajectory_id: str | None = None
    requests: tuple[tuple[str, int], ...] = ()

    @property
    def rollout(self) -> Rollout:
        """Its prompt and completion."""
        return Rollout(
            [*self.prompt_ids, *self.completion_ids],
            self.trajectory_id,
            self.requests,
            loss_mask=[0] * len(self.prompt_ids) + [1] * len(self.completion_ids),
        )


def attach_routes(
    store: RouteStoreClient,
    trajectories: Sequence[Any],
    trajectory_ids: Sequence[str] | None = None,
    *,
    wait_s: float = 30.0,
    model: ModelShape | None = None,
) -> None:
    """Attach to every sampled choice of the trajectories the routes it was sampled with.

    Args:
        store: where vLLM's routes are.
        trajectories: `art.Trajectory`s whose choices came with token ids, which ART asks for
            (`return_token_ids`).
        trajectory_ids: what the agent sent as `X-Session-ID`, one for each trajectory. Without
            them a choice is found by the `id` of its response, which only `exchanges` keep.
        wait_s: for turns that are on their way.
        model: raises unless the routes are of a model of this shape.

    ART wants distinct experts in dense layers too and gets 0, 1, 2, ... there.

    Raises:
        ValueError: a choice without token ids, a choice of `messages_and_choices` without
            `trajectory_ids`, or not one id for each trajectory.
        as `fetch_rollouts` and `rows_of`; the sample counts choices.
    """
    if trajectory_ids is not None and len(trajectory_ids) != len(trajectories):
        msg = f"{len(trajectory_ids)} trajectory ids for {len(trajectories)} trajectories"
        raise ValueError(msg)
    answers = []
    for index, trajectory in enumerate(trajectories):
        name = None if trajectory_ids is None else trajectory_ids[index]
        answers += [*_exchanged(trajectory, name), *_listed(trajectory, name, index)]
    # Choices that were not continued are other branches of their trajectory.
    routes = fetch_rollouts(
        store, [answer.rollout for answer in answers], wait_s=wait_s, branches="allow"
    )
    for answer, one, rows_TLK in zip(answers, routes, rows_of(routes, model=model), strict=True):
        dense_L = ~one.experts.any(axis=(0, 2))
        rows_TLK[:, dense_L] = np.arange(rows_TLK.shape[2], dtype=rows_TLK.dtype)
        answer.choice.model_extra[_METADATA] = {
            "prompt_token_ids": answer.prompt_ids,
            "completion_token_ids": answer.completion_ids,
            "routed_experts": rows_TLK[:-1],
            "num_experts": one.num_experts,
        }


def _exchanged(trajectory: Any, name: str | None) -> Iterator[_Answer]:
    for exchange in trajectory.exchanges.chat_completions:
        response = exchange.response
        prompt_ids = (response.model_extra or {}).get("prompt_token_ids")
        for choice in response.choices:
            requests = () if name else ((response.id, choice.index),)
            where = f"response {response.id}, choice {choice.index},"
            yield _Answer(choice, *_token_ids(choice, prompt_ids, where), name, requests)


def _listed(trajectory: Any, name: str | None, index: int) -> Iterator[_Answer]:
    histories = [trajectory, *trajectory.additional_histories]
    items = [item for history in histories for item in history.messages_and_choices]
    for choice in items:
        if isinstance(choice, dict):
            continue  # a message
        if name is None:
            msg = (
                f"trajectory {index} has choices in messages_and_choices, which do not know the id "
                "of their response; send an X-Session-ID with each request and pass "
                "trajectory_ids, or record exchanges (`with art.Trajectory():`)"
            )
            raise ValueError(msg)
        where = f"trajectory {index} ({name}), a choice"
        yield _Answer(choice, *_token_ids(choice, None, where), name)


def _token_ids(choice: Any, prompt_ids: Any, where: str) -> tuple[list[int], list[int]]:
    extra = choice.model_extra or {}
    prompt_ids = extra.get("prompt_token_ids") if prompt_ids is None else prompt_ids
    completion_ids = extra.get("token_ids")
    if prompt_ids is None or completion_ids is None:
        msg = (
            f"{where} came without token ids; ask for them with "
            'extra_body={"return_token_ids": True}, as the client of an art.Model does'
        )
        raise ValueError(msg)
    return list(prompt_ids), list(completion_ids)
