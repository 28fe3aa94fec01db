"""Let vLLM sample, let it read what it sampled, and fetch the routes of both."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from routereplay.client import RouteStoreClient, Trajectory, stitch
from routereplay.parity.rollout import Engine, Rollout
from routereplay.parity.sampled import SampledTokens

RESCORED = ".rescored"


@dataclass(frozen=True, eq=False)
class Sampling:
    """One playing of all prompts, and the same tokens read again by the same engine."""

    seed: int
    rollouts: list[Rollout]
    rescored: list[SampledTokens]
    trajectories: list[Trajectory]
    """As they were stored; none of a dense model."""
    trajectories_rescored: list[Trajectory]

    @property
    def num_tokens(self) -> int:
        """Tokens of all its trajectories."""
        return sum(len(rollout.token_ids) for rollout in self.rollouts)


def sample(
    engine: Engine,
    store: RouteStoreClient | None,
    prompts: Sequence[Sequence[Sequence[int]]],
    *,
    seed: int,
    max_tokens: int,
    ignore_eos: bool = False,
    name: str = "parity",
    progress: bool = False,
) -> Sampling:
    """Play the prompts, let the engine read what came out, and fetch the routes of both.

    Args:
        store: None for a dense model: nothing is recorded and nothing fetched.

    Raises:
        EngineFailed: the engine answered with an error.
        RouteReplayError: routes are missing or cannot be fetched.
    """
    rollouts = engine.play(
        prompts,
        name=f"{name}-{seed}",
        max_tokens=max_tokens,
        seed=seed * 1_000_003,
        ignore_eos=ignore_eos,
    )
    rescored = engine.rescore(rollouts, suffix=RESCORED)
    if store is None:
        return Sampling(seed, rollouts, rescored, [], [])
    _wait_until_sealed(engine, store)
    ids = [rollout.trajectory_id for rollout in rollouts]
    return Sampling(
        seed,
        rollouts,
        rescored,
        store.fetch_trajectories(ids, wait_s=60, progress=progress),
        store.fetch_trajectories([i + RESCORED for i in ids], wait_s=60, progress=progress),
    )


def sample_stored(
    engine: Engine, store: RouteStoreClient, trajectory_ids: Sequence[str]
) -> Sampling:
    """Take trajectories that are stored already; the engine says of them what it can now.

    A store keeps routes and tokens, no log-probs: those to compare with are the engine's
    of a first reading, and its noise floor is a second one.

    Raises:
        MisalignedRoutes: a trajectory holds several token sequences.
        EngineFailed, RouteReplayError: as `sample`.
    """
    trajectories = store.fetch_trajectories(trajectory_ids, wait_s=60)
    found = [stitch(one) for one in trajectories]
    unsaid = [
        Rollout(
            one.trajectory_id,
            one.token_ids,
            SampledTokens.nothing(np.flatnonzero(one.sampled)),
        )
        for one in found
    ]
    first = engine.rescore(unsaid, suffix=f"{RESCORED}.{secrets.token_hex(4)}")
    suffix = f"{RESCORED}.{secrets.token_hex(4)}"
    second = engine.rescore(unsaid, suffix=suffix)
    _wait_until_sealed(engine, store)
    rollouts = [
        Rollout(one.trajectory_id, one.token_ids, said)
        for one, said in zip(unsaid, first, strict=True)
    ]
    ids = [rollout.trajectory_id + suffix for rollout in rollouts]
    return Sampling(0, rollouts, second, trajectories, store.fetch_trajectories(ids, wait_s=60))


def _wait_until_sealed(engine: Engine, store: RouteStoreClient) -> None:
    """Wait for every request: a trajectory does not know of a turn that is still on its way."""
    store.fetch_requests(engine.take_request_ids(), layers=range(1), wait_s=60)
