"""`Rollout`: what a trainer knows of one sequence; `fetch_rollouts`: its routes, or an error.

Shape legend: T tokens of a sequence, L layers, K topk.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from routereplay.client.blocking_client import RouteStoreClient
from routereplay.client.errors import MissingRoutes, PoisonedRoutes
from routereplay.client.packed import ModelShape
from routereplay.client.packing import pack_thd
from routereplay.client.stitching import BranchPolicy, MissingPolicy, StitchedRoutes, stitch
from routereplay.client.trajectory import Trajectory
from routereplay.wire.errors import (
    NotFound,
    RouteReplayError,
    RoutesPending,
    RouteStoreError,
    error_from_wire,
)
from routereplay.wire.ids import normalize_id
from routereplay.wire.records import FetchFailure

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_NOT_THERE_YET = (NotFound.code, RoutesPending.code)


@dataclass(frozen=True, eq=False, slots=True)
class Rollout:
    """One sequence that is trained, and the id under which its routes were recorded.

    Raises:
        ValueError: not exactly one of `trajectory_id` and `requests` is given, or
            `loss_mask` has another shape than `token_ids`.
    """

    token_ids: npt.ArrayLike
    """`[T]` integers, as they are trained: prompt, answers, tool results; no padding."""

    trajectory_id: str | None = None
    """As the engine was told it: `X-Session-ID`, `session_id`, `vllm_xargs.trajectory_id`."""

    requests: tuple[tuple[str, int], ...] = ()
    """Or the responses that the sequence was sampled in: `(id, choice)`."""

    loss_mask: npt.ArrayLike | None = None
    """`[T]` booleans: each of these tokens must have been sampled in a recorded turn. What
    follows the last of them, a tool's last result, was perhaps never read by the engine and
    needs no route."""

    def __post_init__(self) -> None:
        if (self.trajectory_id is None) == (not self.requests):
            msg = "a Rollout is found by a trajectory_id or by requests; give one of them"
            raise ValueError(msg)
        if self.loss_mask is not None and np.shape(self.loss_mask) != np.shape(self.token_ids):
            msg = (
                f"loss_mask has shape {np.shape(self.loss_mask)} and token_ids "
                f"{np.shape(self.token_ids)}; both have one entry for each token"
            )
            raise ValueError(msg)

    def __str__(self) -> str:
        if self.trajectory_id is not None:
            return f"trajectory {self.trajectory_id}"
        return "requests " + ", ".join(f"{name} choice {choice}" for name, choice in self.requests)


def fetch_rollouts(
    store: RouteStoreClient,
    rollouts: Sequence[Rollout],
    *,
    layers: range | None = None,
    wait_s: float = 30.0,
    missing: MissingPolicy = "raise",
    branches: BranchPolicy = "raise",
) -> list[StitchedRoutes]:
    """Return the routes of each rollout, laid over its tokens, in the order given.

    Args:
        store: where they were recorded.
        rollouts: any number; a trajectory that several share is fetched once.
        layers: 0-based decoder layers, those of a pipeline stage; all without.
        wait_s: for turns that are on their way, those included that the store has not
            heard of yet.
        missing: as for `stitch`; `"live"` too waits `wait_s` for what is missing first.
        branches: as for `stitch`; `"allow"` where rollouts are branches of one trajectory.

    Raises:
        MissingRoutes, MisalignedRoutes, PoisonedRoutes, InvalidRoutes, RouteStoreError:
            of the first rollout that has no routes or other ones; the message begins
            with its index and ids, `details["sample"]` is the index.
        TransportError: the store did not answer.
    """
    deadline = time.monotonic() + wait_s
    done: dict[int, StitchedRoutes] = {}
    pause_s = _FIRST_PAUSE_S
    while True:
        left_s = max(deadline - time.monotonic(), 0.0)
        late: dict[int, RouteReplayError] = {}
        todo = {i: rollout for i, rollout in enumerate(rollouts) if i not in done}
        found = _fetch(store, list(todo.values()), layers, left_s)
        for index, rollout in todo.items():
            trajectory = found[_key(rollout)]
            try:
                if isinstance(trajectory, RouteReplayError):
                    raise trajectory
                gives_up = missing == "live" and left_s == 0.0
                done[index] = _stitch(trajectory, rollout, branches, live=gives_up)
            except RouteReplayError as error:
                if not _may_still_come(error, trajectory, missing):
                    raise _named(error, index, rollout) from error
                late[index] = error
        if not late:
            return [done[index] for index in range(len(rollouts))]
        if left_s == 0.0:
            first = min(late)
            raise _named(late[first], first, rollouts[first], len(late) - 1) from late[first]
        time.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def rows_of(
    routes: Sequence[StitchedRoutes], *, model: ModelShape | None = None
) -> list[np.ndarray]:
    """Return `[T, L, K]` experts of each sequence, every row fit to be executed.

    Rows without a route, the last one always, hold distinct ids that are even over all
    experts (`balanced_experts`); `StitchedRoutes.missing` tells which.

    Args:
        routes: of any number of sequences.
        model: raises unless every turn was recorded from a model of this shape.

    Raises:
        InvalidRoutes: the sequences are not of one model, or a row repeats an expert.
    """
    if not routes:
        return []
    bounds = np.cumsum([0, *(len(one.token_ids) for one in routes)])
    packed = pack_thd(routes, [one.token_ids for one in routes], cu_seqlens=bounds, model=model)
    return [packed.experts[start:stop] for start, stop in pairwise(bounds)]


_Requests: TypeAlias = tuple[tuple[str, int], ...]
_Key: TypeAlias = str | _Requests


def _key(rollout: Rollout) -> _Key:
    if rollout.trajectory_id is not None:
        return normalize_id(rollout.trajectory_id)
    return rollout.requests


def _fetch(
    store: RouteStoreClient, rollouts: Sequence[Rollout], layers: range | None, wait_s: float
) -> dict[_Key, Trajectory | RouteReplayError]:
    """Return by key what the store has for each rollout, or why it has nothing."""
    keys = list(dict.fromkeys(map(_key, rollouts)))
    failures: list[FetchFailure] = []
    names = [key for key in keys if isinstance(key, str)]
    found: dict[_Key, Trajectory | RouteReplayError] = {
        trajectory.trajectory_id: trajectory
        for trajectory in store.fetch_trajectories(
            names, layers=layers, wait_s=wait_s, on_missing=failures.append
        )
    }
    for failure in failures:
        found[failure.id] = error_from_wire(failure.code, failure.message, {"id": failure.id})
    asked = [key for key in keys if not isinstance(key, str)]
    return {**found, **_fetch_requests(store, asked, layers, wait_s)}


def _fetch_requests(
    store: RouteStoreClient, keys: Sequence[_Requests], layers: range | None, wait_s: float
) -> dict[_Key, Trajectory | RouteReplayError]:
    asked = [one for key in keys for one in key]
    try:
        turns = iter(store.fetch_requests(asked, layers=layers, wait_s=wait_s))
        return {key: Trajectory(key[0][0], tuple(islice(turns, len(key)))) for key in keys}
    except RouteStoreError as error:
        if len(keys) == 1:
            return {keys[0]: error}
    # One of them is missing; it has had its time to come.
    return {k: v for key in keys for k, v in _fetch_requests(store, [key], layers, 0.0).items()}


def _stitch(
    trajectory: Trajectory, rollout: Rollout, branches: BranchPolicy, *, live: bool
) -> StitchedRoutes:
    tokens = np.asarray(rollout.token_ids)
    if live:
        return stitch(trajectory, tokens, missing="live", branches=branches)
    mask = None if rollout.loss_mask is None else np.asarray(rollout.loss_mask, dtype=bool)
    trained = len(tokens) if mask is None else int(np.flatnonzero(mask).max(initial=-1)) + 1
    if mask is None or trained in (0, len(tokens)):
        return stitch(trajectory, tokens, branches=branches, loss_mask=mask)
    # Rows behind the last trained token reach no loss, and may not exist.
    stitch(trajectory, tokens[:trained], branches=branches, loss_mask=mask[:trained])
    return stitch(trajectory, tokens, missing="live", branches=branches)


def _may_still_come(
    error: RouteReplayError, trajectory: Trajectory | RouteReplayError, missing: MissingPolicy
) -> bool:
    if isinstance(trajectory, RouteReplayError):
        return error.code in _NOT_THERE_YET
    if missing == "live" and isinstance(error, PoisonedRoutes):
        return True
    lost = any(t.state == "dropped" and t.reason != "aborted" for t in trajectory.unsealed)
    return isinstance(error, MissingRoutes) and (missing == "live" or not lost)


def _named(
    error: RouteReplayError, index: int, rollout: Rollout, others: int = 0
) -> RouteReplayError:
    """Return the error again, with the sample that it is about."""
    more = f" ({others} more samples are without routes)" if others else ""
    msg = f"sample {index} ({rollout}): {error.message}{more}"
    return type(error)(msg, **{**error.details, "sample": index})
