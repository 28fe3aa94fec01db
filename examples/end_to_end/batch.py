"""The batch: fetch the routes of the episodes and pack them beside their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from end_to_end.agent import Episode
from routereplay.client import ModelShape, PackedRoutes, RouteStoreClient, Trajectory, pack_thd
from routereplay.parity.metrics import TopLogprobs
from routereplay.parity.sampled import SampledTokens


@dataclass(frozen=True)
class Batch:
    """One packed row: the tokens of all episodes, their routes, what the engine sampled."""

    token_ids: np.ndarray
    """`[T]` int64."""
    cu_seqlens: np.ndarray
    """`[B + 1]` int64."""
    routes: PackedRoutes
    sampled: SampledTokens


def fetch(store_url: str, episodes: Sequence[Episode], *, progress: bool) -> list[Trajectory]:
    """Fetch the routes of all episodes, waiting for what is still on its way."""
    with RouteStoreClient(store_url) as store:
        ids = [episode.trajectory_id for episode in episodes]
        # A store cannot wait for a turn that it has not heard of: the last may be on its way.
        requests = [[request_id for request_id, _ in episode.choices] for episode in episodes]
        return store.fetch_trajectories(ids, requests=requests, wait_s=30, progress=progress)


def pack(
    episodes: Sequence[Episode], trajectories: Sequence[Trajectory], model: ModelShape
) -> Batch:
    """Pack episodes into one THD row; raises unless every trained token has its route."""
    lengths = [len(episode.token_ids) for episode in episodes]
    cu_seqlens = np.cumsum([0, *lengths])
    loss_mask = np.zeros(cu_seqlens[-1], bool)
    samples = [
        (int(start) + sample.position, sample)
        for episode, start in zip(episodes, cu_seqlens, strict=False)
        for sample in episode.samples
    ]
    loss_mask[[position for position, _ in samples]] = True
    row = np.concatenate([episode.token_ids for episode in episodes])
    routes = pack_thd(trajectories, row, cu_seqlens=cu_seqlens, model=model, loss_mask=loss_mask)
    sampled = SampledTokens(
        positions=np.array([position for position, _ in samples]),
        logprobs=np.array([sample.log_prob for _, sample in samples]),
        top=TopLogprobs(
            np.array([list(sample.top) for _, sample in samples]),
            np.array([list(sample.top.values()) for _, sample in samples]),
        ),
    )
    return Batch(row.astype(np.int64), cu_seqlens.astype(np.int64), routes, sampled)
