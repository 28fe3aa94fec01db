"""What a store would answer, built from turns without a store."""

from __future__ import annotations

import msgspec
import numpy as np

from routereplay.wire import Routes, RoutesItem, TurnStatus, digest, frame_bytes
from routereplay.wire.frame import aligned
from routereplay.wire.records import FetchedTrajectory


def routes_frame(trajectories, failures=()):
    """One `Routes` frame of whole trajectories, each turn with the rows that it holds."""
    items, payload, offset, fetched = [], [], 0, []

    def add(array):
        nonlocal offset
        start = offset
        payload.append(array.tobytes() + bytes(aligned(array.nbytes) - array.nbytes))
        offset += aligned(array.nbytes)
        return start

    for trajectory in trajectories:
        indices = []
        for turn in trajectory.turns:
            indices.append(len(items))
            items.append(
                RoutesItem(
                    manifest=turn.manifest,
                    token_start=turn.token_start,
                    rows=len(turn.experts),
                    layer_start=turn.layer_start,
                    layers=turn.experts.shape[1],
                    rows_offset=add(turn.experts),
                    rows_nbytes=turn.experts.nbytes,
                    rows_digest=digest(np.ascontiguousarray(turn.experts).data),
                    tokens_offset=add(turn.token_ids),
                    tokens_nbytes=turn.token_ids.nbytes,
                    parent=turn.parent,
                )
            )
        statuses = tuple(
            TurnStatus(
                request_id=turn.manifest.request_id, choice=turn.manifest.choice, state="sealed"
            )
            for turn in trajectory.turns
        )
        fetched.append(
            FetchedTrajectory(
                trajectory_id=trajectory.trajectory_id,
                turns=statuses + trajectory.unsealed,
                items=tuple(indices),
            )
        )
    header = Routes(items=tuple(items), trajectories=tuple(fetched), failures=tuple(failures))
    return frame_bytes(header, payload)


def problem(code, message="why", **details):
    return msgspec.json.encode({"code": code, "message": message, "details": details})
