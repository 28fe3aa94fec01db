"""Turns to one token sequence: which recorded row belongs to which trained token.

Alignment is a comparison, never a guess: a turn supplies the row of a token only while
all its tokens up to that one are the trainer's. Of several turns that could supply a
row the first captured wins, because that is the row under which the token was sampled;
a later turn may have routed the same prompt again. Of a turn that is open-ended only the
tokens that the client was given are anybody's: it may part from the trainer's tokens
anywhere in its completion, and gives its rows up to there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from routereplay.client.errors import MisalignedRoutes, MissingRoutes, PoisonedRoutes
from routereplay.client.trajectory import Trajectory
from routereplay.wire.errors import InvalidRoutes
from routereplay.wire.lineage import common_prefix
from routereplay.wire.records import RecordManifest
from routereplay.wire.routes import RoutedExperts

MissingPolicy: TypeAlias = Literal["raise", "live"]
BranchPolicy: TypeAlias = Literal["raise", "allow"]

_NO_TURN = -1


@dataclass(frozen=True, eq=False, slots=True)
class StitchedRoutes:
    """The routes of one trained token sequence."""

    trajectory_id: str

    token_ids: np.ndarray
    """`[tokens]` int32."""

    experts: np.ndarray
    """`[tokens, layers, topk]`; rows that are `missing` are zero and mean nothing."""

    source: np.ndarray
    """`[tokens]` int32: index into `turns` of the turn that supplied the row, -1 if missing."""

    sampled: np.ndarray
    """`[tokens]` bool: the token was sampled in one of the turns (the others are prompt)."""

    turns: tuple[RecordManifest, ...]

    num_experts: int

    layer_start: int = 0

    @property
    def missing(self) -> np.ndarray:
        """`[tokens]` bool: no turn recorded a row for this token."""
        missing: np.ndarray = self.source == _NO_TURN
        return missing

    @property
    def in_order(self) -> bool:
        """Whether all rows hold their ids in vLLM's order: no turn was recorded `sorted`."""
        return all(turn.dtype != "sorted" for turn in self.turns)

    @property
    def coverage(self) -> float:
        """Share of tokens that have a row; 1 - 1/tokens for a whole trajectory."""
        return float(1.0 - self.missing.mean()) if len(self.source) else 0.0

    def policy_version(self, position: int) -> str | None:
        """Return the policy version that routed the token at `position`, if it was recorded."""
        turn = int(self.source[position])
        spans = self.turns[turn].policy_versions if turn != _NO_TURN else ()
        return next((s.version for s in spans if s.start <= position < s.stop), None)

    def policy_rows(self, indices: dict[str, int]) -> np.ndarray:
        """Return `[tokens]` int32: for each row the index of its policy version, -1 without.

        Args:
            indices: index by version; versions that are not in it yet are added.
        """
        rows = np.full(len(self.source), -1, np.int32)
        for turn, manifest in enumerate(self.turns):
            for span in manifest.policy_versions:
                supplied = self.source[span.start : span.stop] == turn
                index = indices.setdefault(span.version, len(indices))
                rows[span.start : span.stop][supplied] = index
        return rows


def stitch(
    trajectory: Trajectory,
    token_ids: npt.ArrayLike | None = None,
    *,
    missing: MissingPolicy = "raise",
    branches: BranchPolicy = "raise",
    loss_mask: npt.ArrayLike | None = None,
) -> StitchedRoutes:
    """Lay the turns of a trajectory over one token sequence.

    Args:
        trajectory: as fetched.
        token_ids: `[tokens]` integers, the sequence as the trainer has it. Without it
            the trajectory must have exactly one (`Trajectory.sequences`).
        missing: `"raise"`, or `"live"` to leave rows without a route, or with one that the
            recorder sealed as invalid, to the router. The row of the very last token never
            exists and is always live.
        branches: `"raise"` if a turn of the trajectory diverges from `token_ids`, or
            `"allow"` for agents that fork or rewrite their history. Other choices of a
            request whose sibling was used are no divergence.
        loss_mask: `[tokens]` booleans; every token that is trained must have been
            sampled in a recorded turn.

    Raises:
        MisalignedRoutes: a recorded token differs from the trainer's.
        PoisonedRoutes: the recorder sealed a turn as invalid.
        MissingRoutes: a turn is pending, dropped or lost, or a token has no row.
        InvalidRoutes: the turns do not agree on the model's shape.
    """
    if not trajectory.turns:
        raise MissingRoutes(_nothing_sealed(trajectory), trajectory_id=trajectory.trajectory_id)
    tokens = _tokens(trajectory, token_ids)
    _check_shapes(trajectory)
    if missing == "raise":
        _check_trusted(trajectory)
        _check_turns(trajectory)
    matches = [common_prefix(turn.token_ids, tokens) for turn in trajectory.turns]
    stitched = _lay(trajectory, tokens, matches)
    if branches == "raise":
        _check_branches(trajectory, tokens, matches)
    if missing == "raise":
        _check_rows(stitched, trajectory, matches)
    if loss_mask is not None:
        _check_sampled(stitched, np.asarray(loss_mask, dtype=bool))
    return stitched


def _tokens(trajectory: Trajectory, token_ids: npt.ArrayLike | None) -> np.ndarray:
    if token_ids is not None:
        tokens = np.asarray(token_ids)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            msg = f"token_ids are a 1-D array of integers; got {tokens.dtype} {tokens.shape}"
            raise TypeError(msg)
        return tokens.astype(np.int32, copy=False)
    sequences = trajectory.sequences()
    if len(sequences) != 1:
        msg = (
            f"trajectory {trajectory.trajectory_id} holds {len(sequences)} token sequences "
            "(choices of one request, or a rewritten history); pass token_ids to say which "
            "one is trained. Trajectory.sequences() lists them."
        )
        raise MisalignedRoutes(msg, trajectory_id=trajectory.trajectory_id)
    return sequences[0]


def _lay(trajectory: Trajectory, tokens: np.ndarray, matches: list[int]) -> StitchedRoutes:
    first = trajectory.turns[0]
    experts = np.zeros((len(tokens), *first.experts.shape[1:]), first.experts.dtype)
    source = np.full(len(tokens), _NO_TURN, np.int32)
    sampled = np.zeros(len(tokens), bool)
    for index, (turn, match) in enumerate(zip(trajectory.turns, matches, strict=True)):
        sampled[turn.manifest.prompt_len : match] = True
        if turn.manifest.invalid:
            continue
        span = slice(turn.token_start, min(turn.token_stop, match))
        if span.stop <= span.start:
            continue
        empty = source[span] == _NO_TURN
        experts[span][empty] = turn.experts[: span.stop - span.start][empty]
        source[span][empty] = index
    return StitchedRoutes(
        trajectory.trajectory_id,
        tokens,
        experts,
        source,
        sampled,
        tuple(turn.manifest for turn in trajectory.turns),
        first.manifest.num_experts,
        first.layer_start,
    )


def _check_shapes(trajectory: Trajectory) -> None:
    shapes = [
        (
            turn.manifest.num_layers,
            turn.manifest.topk,
            turn.manifest.num_experts,
            turn.layer_start,
            turn.experts.shape[1],
        )
        for turn in trajectory.turns
    ]
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            msg = (
                f"trajectory {trajectory.trajectory_id}: {trajectory.describe_turn(index)} has "
                f"(layers, topk, experts, first layer fetched, layers fetched) = {shape}; "
                f"turn 0 has {shapes[0]}. One trajectory is sampled from one model."
            )
            raise InvalidRoutes(msg, trajectory_id=trajectory.trajectory_id, turn=index)


def _check_trusted(trajectory: Trajectory) -> None:
    for index, turn in enumerate(trajectory.turns):
        if turn.manifest.invalid:
            msg = (
                f"trajectory {trajectory.trajectory_id}: {trajectory.describe_turn(index)} was "
                f"sealed as invalid ({', '.join(turn.manifest.invalid)}): vLLM did not capture "
                "its routes. Look at the engine's log and `routereplay doctor`; "
                'pass missing="live" to let the router decide there.'
            )
            raise PoisonedRoutes(
                msg,
                trajectory_id=trajectory.trajectory_id,
                turn=index,
                reasons=list(turn.manifest.invalid),
            )


def _check_turns(trajectory: Trajectory) -> None:
    for turn in trajectory.unsealed:
        if turn.state == "dropped" and turn.reason == "aborted":
            continue  # ended before its first token: nothing was sampled, nothing is lost
        msg = (
            f"trajectory {trajectory.trajectory_id}: the routes of {turn.request_id}, "
            f"choice {turn.choice}, are gone ({turn.reason}); "
            'pass missing="live" to go on without them'
            if turn.state == "dropped"
            else f"trajectory {trajectory.trajectory_id}: {turn.request_id}, choice "
            f"{turn.choice}, is not sealed yet; fetch with wait_s > 0"
        )
        raise MissingRoutes(msg, trajectory_id=trajectory.trajectory_id, turn=turn.request_id)
    for engine_id, ordinal in _gaps(trajectory):
        msg = (
            f"trajectory {trajectory.trajectory_id}: engine {engine_id} served a request "
            f"number {ordinal} of it that is not in the store (expired, deleted or lost)"
        )
        raise MissingRoutes(msg, trajectory_id=trajectory.trajectory_id, ordinal=ordinal)


def _gaps(trajectory: Trajectory) -> Iterator[tuple[str, int]]:
    """Yield the requests between the first and the last one seen that are not there."""
    seen: dict[str, set[int]] = {}
    sealed = [(turn.manifest.engine_id, turn.manifest.ordinal) for turn in trajectory.turns]
    for engine_id, ordinal in sealed + [(t.engine_id, t.ordinal) for t in trajectory.unsealed]:
        seen.setdefault(engine_id, set()).add(ordinal)
    for engine_id, ordinals in seen.items():
        for ordinal in range(min(ordinals), max(ordinals)):
            if ordinal not in ordinals:
                yield engine_id, ordinal


def _check_branches(trajectory: Trajectory, tokens: np.ndarray, matches: list[int]) -> None:
    used = {
        turn.manifest.request_id
        for turn, match in zip(trajectory.turns, matches, strict=True)
        if match == min(len(turn.token_ids), len(tokens))
    }
    for index, (turn, match) in enumerate(zip(trajectory.turns, matches, strict=True)):
        diverges = match < min(len(turn.token_ids), len(tokens)) and not _is_cut(turn, match)
        if diverges and turn.manifest.request_id not in used:
            raise _divergence(trajectory, index, tokens, match)


def _is_cut(turn: RoutedExperts, match: int) -> bool:
    """Whether the client may have been given no more of a turn than its first `match` tokens."""
    return turn.manifest.open_ended and match >= turn.manifest.prompt_len


def _divergence(
    trajectory: Trajectory, index: int, tokens: np.ndarray, position: int
) -> MisalignedRoutes:
    turn = trajectory.turns[index]
    half = "completion" if position >= turn.manifest.prompt_len else "prompt"
    msg = (
        f"trajectory {trajectory.trajectory_id}: {trajectory.describe_turn(index)} diverges at "
        f"position {position} (in its {half}): recorded token {turn.token_ids[position]}, "
        f"the trainer has {tokens[position]}. If the agent forks or rewrites its history, "
        'pass branches="allow".'
    )
    return MisalignedRoutes(
        msg, trajectory_id=trajectory.trajectory_id, turn=index, position=position
    )


def _check_rows(stitched: StitchedRoutes, trajectory: Trajectory, matches: list[int]) -> None:
    last = len(stitched.token_ids) - 1
    holes = np.flatnonzero(stitched.missing[:last])
    if not holes.size:
        return
    position = int(holes[0])
    nearest = int(np.argmax(matches))
    if matches[nearest] == position and position < len(trajectory.turns[nearest].token_ids):
        raise _divergence(trajectory, nearest, stitched.token_ids, position)
    msg = (
        f"trajectory {trajectory.trajectory_id}: no recorded turn has a row for position "
        f"{position} (token {stitched.token_ids[position]}); {holes.size} of {last} rows are "
        f"missing, the longest turn that matches is {trajectory.describe_turn(nearest)} with "
        f'{matches[nearest]} tokens. Pass missing="live" to let the router decide there.'
    )
    raise MissingRoutes(
        msg, trajectory_id=trajectory.trajectory_id, turn=nearest, position=position
    )


def _check_sampled(stitched: StitchedRoutes, loss_mask: np.ndarray) -> None:
    if loss_mask.shape != stitched.token_ids.shape:
        msg = f"loss_mask has shape {loss_mask.shape}, token_ids {stitched.token_ids.shape}"
        raise ValueError(msg)
    wrong = np.flatnonzero(loss_mask & ~stitched.sampled)
    if wrong.size:
        position = int(wrong[0])
        msg = (
            f"trajectory {stitched.trajectory_id}: position {position} (token "
            f"{stitched.token_ids[position]}) is trained, but no recorded turn sampled it; "
            f"{wrong.size} trained tokens are like this"
        )
        raise MissingRoutes(msg, trajectory_id=stitched.trajectory_id, position=position)


def _nothing_sealed(trajectory: Trajectory) -> str:
    states = ", ".join(
        f"{turn.request_id}: {turn.state} {turn.reason}".rstrip() for turn in trajectory.unsealed
    )
    return f"trajectory {trajectory.trajectory_id} has no sealed turn ({states or 'none seen'})"
