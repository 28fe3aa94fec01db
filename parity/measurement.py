"""Sample with vLLM, score with Megatron, compare: the run behind `routereplay parity`.

Everything that is compared lies in one row of N tokens, the trajectories one after the
other and the samplings one after the other, so that a figure for one sampling is a slice.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from routereplay.client import ModelShape, RouteStoreClient, Trajectory, stitch
from routereplay.parity.comparison import Mismatch, compare_scored
from routereplay.parity.megatron_job import Job, Pass, run_job
from routereplay.parity.packed_rows import PackedRow, pack_rows
from routereplay.parity.rollout import Engine, Rollout
from routereplay.parity.sampled import SampledTokens
from routereplay.parity.scored import Scored
from routereplay.parity.topology import Topology

RESCORED = ".rescored"
ENGINE_AGAIN = "vLLM again"
MEGATRON_AGAIN = "Megatron again"
REPLAY_OFF = "replay off"
REPLAY_ON = "replay on"


@dataclass(frozen=True, eq=False)
class Sampling:
    """One playing of all prompts, and the same tokens read again by the same engine."""

    seed: int
    rollouts: list[Rollout]
    rescored: list[SampledTokens]
    trajectories: list[Trajectory]
    trajectories_rescored: list[Trajectory]

    @property
    def num_tokens(self) -> int:
        """Tokens of all its trajectories."""
        return sum(len(rollout.token_ids) for rollout in self.rollouts)


def sample(
    engine: Engine,
    store: RouteStoreClient,
    prompts: Sequence[Sequence[Sequence[int]]],
    *,
    seed: int,
    max_tokens: int,
    ignore_eos: bool = False,
    name: str = "parity",
    progress: bool = False,
) -> Sampling:
    """Play the prompts, let the engine read what came out, and fetch the routes of both.

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


class Measured:
    """What all engines said of the same tokens; Megatron speaks once `score` was called."""

    def __init__(self, samplings: Sequence[Sampling], model: ModelShape) -> None:
        self.samplings = list(samplings)
        self._model = model
        self._trajectories = [one for sampling in samplings for one in sampling.trajectories]
        again = [one for sampling in samplings for one in sampling.trajectories_rescored]
        rollouts = [rollout for sampling in samplings for rollout in sampling.rollouts]
        self._tokens = [rollout.token_ids for rollout in rollouts]
        self._trained = [rollout.sampled.positions for rollout in rollouts]
        self.bounds = np.cumsum([0, *(sampling.num_tokens for sampling in samplings)])
        """`[samplings + 1]`: where each sampling's tokens begin."""
        self.sampled = Scored.of_engine(
            [rollout.sampled for rollout in rollouts], _routes(self._trajectories, self._tokens)
        )
        """The engine, while it sampled: what everything else is compared with."""
        rescored = [one for sampling in samplings for one in sampling.rescored]
        self.passes = {ENGINE_AGAIN: Scored.of_engine(rescored, _routes(again, self._tokens))}
        """By the names of the table's columns; a later topology's have its name behind them."""
        self._covered = {ENGINE_AGAIN: len(self.samplings)}
        self.stages: dict[str, dict[str, float]] = {}
        """By topology, the seconds after which Megatron's rank 0 had reached each stage."""

    def score(
        self,
        topology: Topology,
        *,
        checkpoint: str,
        device: str,
        dtype: str,
        row_tokens: int = 0,
        samplings: int = 0,
        timeout_s: float = 600.0,
    ) -> None:
        """Score with Megatron what was sampled: live, replayed, and live in another packing.

        Args:
            device: `cpu` or `cuda`.
            dtype: of Megatron's parameters and arithmetic, by its name in torch.
            row_tokens: length of a packed row; 0 for four times the longest trajectory.
            samplings: how many of them to score, from the first; 0 for all.

        Raises:
            MisalignedRoutes, MissingRoutes, InvalidRoutes: the routes do not fit the tokens.
            EngineFailed: Megatron ended with an error, or the time is up.
        """
        covered = samplings or len(self.samplings)
        count = sum(len(one.rollouts) for one in self.samplings[:covered])
        longest = max(map(len, self._tokens))
        length = max(row_tokens or 4 * longest, longest)
        # Sequence parallelism divides a row; the second packing has other lengths and neighbours.
        step = 8 * topology.tp
        rows = self._rows(count, _multiple(length, step))
        others = self._rows(count, _multiple(max(longest, 3 * length // 4), step), backwards=True)
        job = Job(
            *(checkpoint, device, dtype, topology.tp, topology.pp, topology.ep),
            canary_every=1,
            timeout_s=timeout_s,
            passes=[
                Pass(REPLAY_OFF, False, list(range(len(rows)))),
                Pass(REPLAY_ON, True, list(range(len(rows)))),
                Pass(MEGATRON_AGAIN, False, list(range(len(rows), len(rows) + len(others)))),
            ],
        )
        found, stages = run_job(job, [*rows, *others], int(self.bounds[-1]))
        self.stages[str(topology)] = stages
        behind = f" {topology}" if REPLAY_OFF in self.passes else ""
        self.passes |= {name + behind: scored for name, scored in found.items()}
        self._covered |= dict.fromkeys((name + behind for name in found), covered)

    def columns(self, sampling: int | None = None) -> dict[str, Mismatch]:
        """Return the table, over all samplings that a column covers or of one."""
        found = {}
        for name, scored in self.passes.items():
            covered = self._covered[name]
            if sampling is not None and sampling >= covered:
                continue
            start, stop = (0, covered) if sampling is None else (sampling, sampling + 1)
            span = int(self.bounds[start]), int(self.bounds[stop])
            found[name] = compare_scored(scored.between(*span), self._target(name).between(*span))
        return found

    def _rows(self, count: int, row_tokens: int, *, backwards: bool = False) -> list[PackedRow]:
        return pack_rows(
            *(self._trajectories[:count], self._tokens[:count], self._trained[:count]),
            *(self._model, row_tokens),
            backwards=backwards,
        )

    def _target(self, name: str) -> Scored:
        if not name.startswith(MEGATRON_AGAIN):
            return self.sampled
        live = self.passes[REPLAY_OFF + name.removeprefix(MEGATRON_AGAIN)]
        return _only(live, self.sampled)


def _wait_until_sealed(engine: Engine, store: RouteStoreClient) -> None:
    """Wait for every request: a trajectory does not know of a turn that is still on its way."""
    store.fetch_requests(engine.take_request_ids(), layers=range(1), wait_s=60)


def _routes(
    trajectories: Sequence[Trajectory], tokens: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    stitched = [stitch(one, row) for one, row in zip(trajectories, tokens, strict=True)]
    return [(routes.experts, ~routes.missing) for routes in stitched]


def _only(scored: Scored, where: Scored) -> Scored:
    """Return `scored` with log-probs where `where` has some, and nowhere else."""
    logprobs = np.where(np.isnan(where.logprobs), np.nan, scored.logprobs)
    return Scored(logprobs, scored.top, scored.experts, scored.routed)


def _multiple(value: int, step: int) -> int:
    return -(-value // step) * step
