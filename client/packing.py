"""Trajectories to a batch in the trainer's own layout, strictly.

Shape legend: B sequences, S padded length, T rows of the batch, L layers, K topk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from routereplay.client.errors import MisalignedRoutes
from routereplay.client.packed import ModelShape, PackedRoutes
from routereplay.client.stitching import BranchPolicy, MissingPolicy, StitchedRoutes, stitch
from routereplay.client.trajectory import Trajectory
from routereplay.wire.errors import InvalidRoutes
from routereplay.wire.routes import RoutedExperts

Episode: TypeAlias = Trajectory | StitchedRoutes | RoutedExperts
"""What can be packed: a trajectory, one that was stitched already, or a single request."""


class _Slot(NamedTuple):
    """Where one sequence lies in the batch."""

    start: int
    length: int


def pack_thd(
    episodes: Sequence[Episode],
    token_ids: npt.ArrayLike | Sequence[npt.ArrayLike],
    *,
    cu_seqlens: npt.ArrayLike,
    cu_seqlens_padded: npt.ArrayLike | None = None,
    model: ModelShape | None = None,
    missing: MissingPolicy = "raise",
    branches: BranchPolicy = "raise",
    loss_mask: npt.ArrayLike | None = None,
) -> PackedRoutes:
    """Pack routes for one THD row, as Megatron's `PackedSeqParams(qkv_format="thd")` has it.

    Args:
        episodes: one for each packed sequence, in order.
        token_ids: `[T]`, the packed row; or one array for each sequence, unpadded.
        cu_seqlens: `[B + 1]`, from 0: real lengths are its differences.
        cu_seqlens_padded: `[B + 1]`, where the sequences start in the row and where it
            ends; equal to `cu_seqlens` without.
        model: raises unless every turn was recorded from a model of this shape.
        missing, branches: see `stitch`.
        loss_mask: `[T]`; see `stitch`.

    Raises:
        MisalignedRoutes, MissingRoutes, InvalidRoutes: naming trajectory, turn, position.
        ValueError: the arguments contradict each other.
    """
    lengths = np.diff(_boundaries(cu_seqlens, len(episodes), "cu_seqlens"))
    bounds = _boundaries(
        cu_seqlens if cu_seqlens_padded is None else cu_seqlens_padded,
        len(episodes),
        "cu_seqlens_padded",
    )
    if (lengths > np.diff(bounds)).any():
        msg = f"a sequence is longer than its padded slot: {lengths} against {np.diff(bounds)}"
        raise ValueError(msg)
    slots = [_Slot(int(start), int(n)) for start, n in zip(bounds[:-1], lengths, strict=True)]
    rows = _split_thd(token_ids, slots, int(bounds[-1]))
    masks = None if loss_mask is None else _split_thd(loss_mask, slots, int(bounds[-1]))
    stitched = _stitch_all(episodes, rows, masks, missing, branches)
    return _fill(stitched, slots, int(bounds[-1]), model)


def pack_padded(
    episodes: Sequence[Episode],
    token_ids: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    attention_mask: npt.ArrayLike | None = None,
    model: ModelShape | None = None,
    missing: MissingPolicy = "raise",
    branches: BranchPolicy = "raise",
    loss_mask: npt.ArrayLike | None = None,
) -> PackedRoutes:
    """Pack routes for a padded batch; row `b * S + s` belongs to token `[b, s]`.

    Args:
        episodes: one for each sequence, in order.
        token_ids: `[B, S]`.
        lengths: `[B]` real lengths of a batch that is padded on the right.
        attention_mask: or `[B, S]` booleans, True for real tokens, for padding on the left
            or on both sides, as TRL and verl pad prompts and completions.
        model: raises unless every turn was recorded from a model of this shape.
        missing, branches: see `stitch`.
        loss_mask: `[B, S]`; see `stitch`.

    Raises:
        MisalignedRoutes, MissingRoutes, InvalidRoutes: naming trajectory, turn, position.
        ValueError: the arguments contradict each other.
    """
    tokens_BS = np.asarray(token_ids)
    if tokens_BS.ndim != 2 or len(episodes) != len(tokens_BS):
        msg = f"{len(episodes)} episodes and token_ids {tokens_BS.shape}; expected a row for each"
        raise ValueError(msg)
    if (lengths is None) == (attention_mask is None):
        msg = "give lengths of a batch padded on the right, or its attention_mask; one of them"
        raise ValueError(msg)
    slots = (
        _slots_of_lengths(np.asarray(lengths), tokens_BS.shape)
        if attention_mask is None
        else _slots_of_mask(np.asarray(attention_mask, dtype=bool), tokens_BS.shape)
    )
    if loss_mask is not None and np.shape(loss_mask) != tokens_BS.shape:
        msg = f"loss_mask has shape {np.shape(loss_mask)}, token_ids {tokens_BS.shape}"
        raise ValueError(msg)
    rows = _cut(tokens_BS, slots)
    masks = None if loss_mask is None else _cut(np.asarray(loss_mask, dtype=bool), slots)
    stitched = _stitch_all(episodes, rows, masks, missing, branches)
    return _fill(stitched, slots, tokens_BS.size, model)


def unrouted(
    num_tokens: int, model: ModelShape, *, padding: npt.ArrayLike | None = None
) -> PackedRoutes:
    """Return a batch without any route: the router decides every row that is no padding.

    For a pass whose own choice is recorded and replayed later (R2).

    Args:
        num_tokens: rows of the batch, padding included.
        padding: `[num_tokens]` booleans, rows without a token; they hold balanced experts.

    Raises:
        ValueError: `padding` has another length.
    """
    is_padding = np.zeros(num_tokens, bool) if padding is None else np.array(padding, bool)
    if is_padding.shape != (num_tokens,):
        msg = f"padding has shape {is_padding.shape}; expected ({num_tokens},), one for each row"
        raise ValueError(msg)
    rows = max(int(is_padding.sum()), 1)
    balanced_PLK = balanced_experts(rows, model.num_layers, model.topk, model.num_experts)
    experts_TLK = np.empty((num_tokens, *balanced_PLK.shape[1:]), balanced_PLK.dtype)
    experts_TLK[:] = balanced_PLK[0]
    if is_padding.any():
        experts_TLK[is_padding] = balanced_PLK
    nothing_lost = np.zeros(num_tokens, bool)
    return PackedRoutes(
        experts_TLK, ~is_padding, is_padding, model.num_experts, missing=nothing_lost
    )


def balanced_experts(rows: int, layers: int, topk: int, num_experts: int) -> np.ndarray:
    """Return `[rows, layers, topk]` ids for padding: distinct in a row, even over all experts.

    Constant ids send every padding row to one expert-parallel rank, which is how peers
    ran out of memory; zeros repeat an id inside a row, which dispatchers reject. The
    ids walk through the experts in golden-ratio strides, so that even a few rows reach
    experts on every rank.
    """
    if topk > num_experts:
        msg = f"topk {topk} of {num_experts} experts cannot be distinct"
        raise ValueError(msg)
    stride = max(int(num_experts * 0.618), 1)
    while np.gcd(stride, num_experts) != 1:
        stride += 1
    steps = np.arange(rows * layers * topk, dtype=np.int64).reshape(rows, layers, topk)
    dtype = np.uint8 if num_experts <= 256 else np.uint16
    return (steps * stride % num_experts).astype(dtype)


def _boundaries(cu_seqlens: npt.ArrayLike, count: int, name: str) -> np.ndarray:
    bounds = np.asarray(cu_seqlens).astype(np.int64)
    if bounds.shape != (count + 1,) or bounds[0] != 0 or (np.diff(bounds) < 0).any():
        msg = f"{name} for {count} episodes is [{count + 1}] integers rising from 0; got {bounds}"
        raise ValueError(msg)
    return bounds


def _slots_of_lengths(lengths: np.ndarray, shape: tuple[int, ...]) -> list[_Slot]:
    batch, width = shape
    if lengths.shape != (batch,):
        msg = f"lengths have shape {lengths.shape}; expected ({batch},), one for each sequence"
        raise ValueError(msg)
    if (lengths < 0).any() or (lengths > width).any():
        msg = f"lengths {lengths} do not fit rows of {width} tokens"
        raise ValueError(msg)
    return [_Slot(b * width, int(n)) for b, n in enumerate(lengths)]


def _slots_of_mask(mask_BS: np.ndarray, shape: tuple[int, ...]) -> list[_Slot]:
    if mask_BS.shape != shape:
        msg = f"attention_mask has shape {mask_BS.shape} and token_ids {shape}; both are [B, S]"
        raise ValueError(msg)
    counts, firsts = mask_BS.sum(axis=1), mask_BS.argmax(axis=1)
    for b, (first, n) in enumerate(zip(firsts, counts, strict=True)):
        if not mask_BS[b, first : first + n].all():
            msg = f"attention_mask of sequence {b} has a gap: its {n} real tokens are not one run"
            raise ValueError(msg)
    return [
        _Slot(b * shape[1] + int(first), int(n))
        for b, (first, n) in enumerate(zip(firsts, counts, strict=True))
    ]


def _cut(values_BS: np.ndarray, slots: list[_Slot]) -> list[np.ndarray]:
    flat = values_BS.reshape(-1)
    return [flat[slot.start : slot.start + slot.length] for slot in slots]


def _split_thd(
    values: npt.ArrayLike | Sequence[npt.ArrayLike], slots: list[_Slot], total: int
) -> list[np.ndarray]:
    """Cut a packed row into its sequences, or check that they come cut."""
    if isinstance(values, (list, tuple)) and values and np.ndim(values[0]) == 1:
        rows = [np.asarray(row) for row in values]
        if [len(row) for row in rows] != [slot.length for slot in slots]:
            msg = f"sequences of {[len(r) for r in rows]} tokens; cu_seqlens says {slots}"
            raise ValueError(msg)
        return rows
    row = np.asarray(values).reshape(-1)
    if len(row) != total:
        msg = f"a packed row of {len(row)} tokens; cu_seqlens ends at {total}"
        raise ValueError(msg)
    return _cut(row, slots)


def _stitch_all(
    episodes: Sequence[Episode],
    rows: list[np.ndarray],
    masks: list[np.ndarray] | None,
    missing: MissingPolicy,
    branches: BranchPolicy,
) -> list[StitchedRoutes]:
    stitched = []
    for index, (episode, tokens) in enumerate(zip(episodes, rows, strict=True)):
        if isinstance(episode, StitchedRoutes):
            _check_same_tokens(episode, tokens)
            stitched.append(episode)
            continue
        trajectory = Trajectory.of(episode) if isinstance(episode, RoutedExperts) else episode
        mask = None if masks is None else masks[index]
        stitched.append(
            stitch(trajectory, tokens, missing=missing, branches=branches, loss_mask=mask)
        )
    return stitched


def _check_same_tokens(stitched: StitchedRoutes, tokens: np.ndarray) -> None:
    if np.array_equal(stitched.token_ids, tokens):
        return
    length = min(len(tokens), len(stitched.token_ids))
    differs = np.flatnonzero(stitched.token_ids[:length] != tokens[:length])
    position = int(differs[0]) if differs.size else length
    msg = (
        f"trajectory {stitched.trajectory_id} was stitched for {len(stitched.token_ids)} other "
        f"tokens than the {len(tokens)} to pack: first difference at position {position}"
    )
    raise MisalignedRoutes(msg, trajectory_id=stitched.trajectory_id, position=position)


def _fill(
    stitched: list[StitchedRoutes], slots: list[_Slot], total: int, model: ModelShape | None
) -> PackedRoutes:
    if not stitched:
        msg = "nothing to pack: no episodes were given"
        raise ValueError(msg)
    first = stitched[0]
    for routes in stitched:
        _check_model(routes, first, model)
    _, layers, topk = first.experts.shape
    experts_TLK = np.empty((total, layers, topk), first.experts.dtype)
    live = np.zeros(total, bool)
    padding = np.ones(total, bool)
    policy, versions = np.full(total, -1, np.int32), dict[str, int]()
    missing = np.zeros(total, bool)
    for routes, slot in zip(stitched, slots, strict=True):
        span = slice(slot.start, slot.start + slot.length)
        experts_TLK[span] = routes.experts
        live[span] = routes.missing
        missing[span][:-1] = routes.missing[:-1]
        policy[span] = routes.policy_rows(versions)
        padding[span] = False
        _check_distinct(routes)
    unrouted = live | padding
    experts_TLK[unrouted] = balanced_experts(int(unrouted.sum()), layers, topk, first.num_experts)
    return PackedRoutes(
        experts_TLK,
        live,
        padding,
        first.num_experts,
        first.layer_start,
        missing=missing,
        policy=policy,
        policy_versions=tuple(versions),
        in_order=all(routes.in_order for routes in stitched),
    )


def _check_model(routes: StitchedRoutes, first: StitchedRoutes, model: ModelShape | None) -> None:
    manifest = routes.turns[0]
    found = ModelShape(manifest.num_layers, manifest.topk, manifest.num_experts)
    same = (routes.layer_start, routes.experts.shape[1]) == (
        first.layer_start,
        first.experts.shape[1],
    )
    reference = first.turns[0]
    expected = model or ModelShape(reference.num_layers, reference.topk, reference.num_experts)
    if found != expected or not same:
        msg = (
            f"trajectory {routes.trajectory_id}: turn 0 ({manifest.request_id}) from position 0 "
            f"was recorded from {found} with layers "
            f"{routes.layer_start}:{routes.layer_start + routes.experts.shape[1]}; "
            f"expected {expected} with layers "
            f"{first.layer_start}:{first.layer_start + first.experts.shape[1]}"
        )
        raise InvalidRoutes(msg, trajectory_id=routes.trajectory_id)


def _check_distinct(routes: StitchedRoutes) -> None:
    """Raise if a recorded row names an expert twice; all-zero planes are dense layers."""
    recorded = ~routes.missing
    topk = routes.experts.shape[2]
    if topk < 2 or not recorded.any():
        return
    # Expert-major, so that each comparison runs over contiguous memory.
    ids_KTL = np.ascontiguousarray(routes.experts.transpose(2, 0, 1))
    repeated_TL = np.zeros(ids_KTL.shape[1:], bool)
    for left in range(topk):
        for right in range(left + 1, topk):
            repeated_TL |= ids_KTL[left] == ids_KTL[right]
    dense_L = ~routes.experts.any(axis=(0, 2))
    repeated_TL &= recorded[:, None] & ~dense_L
    if not repeated_TL.any():
        return
    position, plane = (int(found[0]) for found in np.nonzero(repeated_TL))
    turn = int(routes.source[position])
    msg = (
        f"trajectory {routes.trajectory_id}: turn {turn} ({routes.turns[turn].request_id}), "
        f"position {position}, layer {routes.layer_start + plane}: experts "
        f"{routes.experts[position, plane].tolist()} repeat an id; a router picks distinct ones"
    )
    raise InvalidRoutes(msg, trajectory_id=routes.trajectory_id, turn=turn, position=position)
