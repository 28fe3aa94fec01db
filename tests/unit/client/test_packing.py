"""Packing: trajectories in the trainer's layout, strictly."""

import dataclasses

import msgspec
import numpy as np
import pytest
from support.trajectories import EXPERTS, LAYERS, TOPK, conversation, expected_rows, trajectory

from routereplay.client import (
    MisalignedRoutes,
    MissingRoutes,
    ModelShape,
    balanced_experts,
    pack_padded,
    pack_thd,
    stitch,
    unrouted,
)
from routereplay.wire.errors import InvalidRoutes


@pytest.fixture
def batch():
    """Two trajectories of 8 and 9 tokens."""
    first, tokens_a = conversation((3, 2), (1, 2))
    second, tokens_b = conversation((4, 5), first_token=40)
    return [trajectory(*first), trajectory(*second, trajectory_id="episode-1")], [
        tokens_a,
        tokens_b,
    ]


def test_a_thd_row_holds_each_sequences_rows_where_cu_seqlens_says(batch):
    episodes, tokens = batch

    packed = pack_thd(episodes, np.concatenate(tokens), cu_seqlens=[0, 8, 17])

    assert np.array_equal(packed.experts[:7], expected_rows(tokens[0], 0, 7))
    assert np.array_equal(packed.experts[8:16], expected_rows(tokens[1], 0, 8))
    assert np.flatnonzero(packed.live).tolist() == [7, 16]
    assert not packed.padding.any()


def test_a_batch_says_whether_one_of_its_turns_was_recorded_without_order(batch):
    episodes, tokens = batch
    turn = episodes[1].turns[-1]
    manifest = msgspec.structs.replace(turn.manifest, dtype="sorted")
    turns = (*episodes[1].turns[:-1], dataclasses.replace(turn, manifest=manifest))
    without = [episodes[0], dataclasses.replace(episodes[1], turns=turns)]

    assert pack_thd(episodes, tokens, cu_seqlens=[0, 8, 17]).in_order
    assert not pack_thd(without, tokens, cu_seqlens=[0, 8, 17]).in_order


def test_padded_slots_are_padding(batch):
    episodes, tokens = batch
    row = np.zeros(28, np.int64)
    row[:8], row[12:21] = tokens

    packed = pack_thd(episodes, row, cu_seqlens=[0, 8, 17], cu_seqlens_padded=np.array([0, 12, 28]))

    assert np.array_equal(packed.experts[12:20], expected_rows(tokens[1], 0, 8))
    assert np.flatnonzero(packed.padding).tolist() == [8, 9, 10, 11, *range(21, 28)]


def test_sequences_may_come_one_by_one(batch):
    episodes, tokens = batch

    a = pack_thd(episodes, tokens, cu_seqlens=[0, 8, 17])
    b = pack_thd(episodes, np.concatenate(tokens), cu_seqlens=[0, 8, 17])

    assert np.array_equal(a.experts, b.experts)


def test_a_padded_batch_is_sequence_major(batch):
    episodes, tokens = batch
    table = np.zeros((2, 10), np.int32)
    table[0, :8], table[1, :9] = tokens

    packed = pack_padded(episodes, table, lengths=[8, 9])

    assert np.array_equal(packed.experts[10:18], expected_rows(tokens[1], 0, 8))
    assert np.flatnonzero(packed.padding).tolist() == [8, 9, 19]
    assert np.flatnonzero(packed.live).tolist() == [7, 18]


def test_a_batch_padded_on_both_sides_is_found_by_its_attention_mask(batch):
    """Prompts on the left and completions on the right, as TRL and verl pad them."""
    episodes, tokens = batch
    table, mask = np.zeros((2, 12), np.int64), np.zeros((2, 12), np.int64)
    table[0, 3:11], table[1, 1:10] = tokens
    mask[0, 3:11] = mask[1, 1:10] = 1
    trained = np.zeros((2, 12), bool)
    trained[0, 10] = True  # the last completion of the first episode

    packed = pack_padded(episodes, table, attention_mask=mask, loss_mask=trained)

    assert np.array_equal(packed.experts[3:10], expected_rows(tokens[0], 0, 7))
    assert np.array_equal(packed.experts[13:21], expected_rows(tokens[1], 0, 8))
    assert np.array_equal(packed.padding, mask.reshape(-1) == 0)
    assert np.flatnonzero(packed.live).tolist() == [10, 21]
    with pytest.raises(MissingRoutes, match="position 0 .*no recorded turn sampled it"):
        pack_padded(episodes, table, attention_mask=mask, loss_mask=np.roll(trained, -7, axis=1))


def test_a_padded_batch_says_where_its_tokens_are_once_and_whole(batch):
    episodes, tokens = batch
    table = np.zeros((2, 10), np.int32)
    table[0, :8], table[1, :9] = tokens
    mask = table > -1

    for arguments in ({}, {"lengths": [8, 9], "attention_mask": mask}):
        with pytest.raises(ValueError, match="one of them"):
            pack_padded(episodes, table, **arguments)
    with pytest.raises(ValueError, match="both are"):
        pack_padded(episodes, table, attention_mask=mask[:, :9])
    with pytest.raises(ValueError, match="one for each sequence"):
        pack_padded(episodes, table, lengths=[8])
    mask[1, 4] = False
    with pytest.raises(ValueError, match="sequence 1 has a gap: its 9 real tokens"):
        pack_padded(episodes, table, attention_mask=mask)
    with pytest.raises(ValueError, match="loss_mask has shape"):
        pack_padded(episodes, table, lengths=[8, 9], loss_mask=mask[:, 1:])


def test_stitched_routes_and_single_requests_pack_too(batch):
    episodes, tokens = batch
    single = episodes[1].turns[0]

    packed = pack_thd([stitch(episodes[0], tokens[0]), single], tokens, cu_seqlens=[0, 8, 17])

    assert np.array_equal(packed.experts[8:16], expected_rows(tokens[1], 0, 8))


def test_stitched_routes_of_other_tokens_are_misaligned(batch):
    episodes, tokens = batch
    other = tokens[0].copy()
    other[5] = 7

    with pytest.raises(MisalignedRoutes, match="first difference at position 5"):
        pack_thd([stitch(episodes[0], tokens[0])], other, cu_seqlens=[0, 8])


def test_swapped_trajectories_are_misaligned(batch):
    episodes, tokens = batch

    with pytest.raises(MisalignedRoutes, match="episode-1: turn 0"):
        pack_thd(episodes[::-1], tokens, cu_seqlens=[0, 8, 17])


def test_a_missing_turn_raises_and_live_masks_it(batch):
    episodes, tokens = batch
    cut = dataclasses.replace(episodes[0], turns=episodes[0].turns[:1])

    with pytest.raises(MissingRoutes, match="episode-0"):
        pack_thd([cut], tokens[0], cu_seqlens=[0, 8])
    packed = pack_thd([cut], tokens[0], cu_seqlens=[0, 8], missing="live")
    assert np.flatnonzero(packed.live).tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    "model",
    [
        ModelShape(LAYERS + 1, TOPK, EXPERTS),
        ModelShape(LAYERS, TOPK + 1, EXPERTS),
        ModelShape(LAYERS, TOPK, 2 * EXPERTS),
    ],
)
def test_another_models_shape_raises_and_names_both(batch, model):
    episodes, tokens = batch

    with pytest.raises(InvalidRoutes, match="episode-0: turn 0 .*num_experts=8.*expected Model"):
        pack_thd(episodes, tokens, cu_seqlens=[0, 8, 17], model=model)
    pack_thd(episodes, tokens, cu_seqlens=[0, 8, 17], model=ModelShape(LAYERS, TOPK, EXPERTS))


def test_a_repeated_expert_names_turn_position_and_layer(batch):
    episodes, tokens = batch
    broken = episodes[0].turns[1].experts.copy()
    broken[1, 2] = 5
    turns = (episodes[0].turns[0], dataclasses.replace(episodes[0].turns[1], experts=broken))
    start = episodes[0].turns[1].token_start

    with pytest.raises(InvalidRoutes, match=rf"turn 1 .*position {start + 1}, layer 2: .*5, 5."):
        pack_thd([dataclasses.replace(episodes[0], turns=turns)], tokens[0], cu_seqlens=[0, 8])


def test_an_all_zero_plane_is_a_dense_layer_and_no_repeat(batch):
    episodes, tokens = batch
    turns = []
    for one in episodes[0].turns:
        experts = one.experts.copy()
        experts[:, 0] = 0
        turns.append(dataclasses.replace(one, experts=experts))

    packed = pack_thd(
        [dataclasses.replace(episodes[0], turns=tuple(turns))], tokens[0], cu_seqlens=[0, 8]
    )

    assert not packed.experts[:7, 0].any()


def test_zeroed_rows_in_a_moe_layer_are_refused(batch):
    episodes, tokens = batch
    experts = episodes[1].turns[0].experts.copy()
    experts[3] = 0
    broken = dataclasses.replace(episodes[1].turns[0], experts=experts)

    with pytest.raises(InvalidRoutes, match="position 3, layer 0"):
        pack_thd([broken], tokens[1], cu_seqlens=[0, 9])


@pytest.mark.parametrize(
    ("cu_seqlens", "row"),
    [([0, 8], 17), ([1, 8, 17], 17), ([0, 9, 8], 17), ([0, 8, 17], 16), ([0, 8, 18], 18)],
)
def test_contradictory_layouts_are_refused(batch, cu_seqlens, row):
    episodes, tokens = batch
    flat = np.concatenate([*tokens, [0, 0]])[:row]

    with pytest.raises((ValueError, MissingRoutes)):
        pack_thd(episodes, flat, cu_seqlens=cu_seqlens)


def test_a_sequence_longer_than_its_slot_is_refused(batch):
    episodes, tokens = batch

    with pytest.raises(ValueError, match="longer than its padded slot"):
        pack_thd(episodes, tokens, cu_seqlens=[0, 8, 17], cu_seqlens_padded=[0, 4, 20])


def test_torch_tensors_are_taken_as_they_are(batch):
    torch = pytest.importorskip("torch")
    episodes, tokens = batch

    packed = pack_thd(
        episodes,
        torch.from_numpy(np.concatenate(tokens)).long()[None],
        cu_seqlens=torch.tensor([0, 8, 17], dtype=torch.int32),
    )

    assert packed.num_tokens == 17


@pytest.mark.parametrize(("topk", "experts"), [(8, 128), (8, 256), (4, 16), (10, 512), (2, 2)])
def test_padding_rows_are_distinct_and_spread_over_every_rank(topk, experts):
    rows = balanced_experts(64, 3, topk, experts)

    assert rows.shape == (64, 3, topk)
    assert all(len(set(row)) == topk for row in rows.reshape(-1, topk).tolist())
    ranks = min(8, experts)
    load = np.bincount(rows.reshape(-1).astype(int) * ranks // experts, minlength=ranks)
    assert load.max() <= 1.1 * load.mean()


def test_even_a_few_padding_rows_reach_every_rank():
    rows = balanced_experts(2, 1, 8, 128)

    assert set((rows.reshape(-1).astype(int) * 8 // 128).tolist()) == set(range(8))


def test_a_batch_without_routes_is_live_where_it_is_no_padding():
    padding = np.array([False, True, False, True])
    packed = unrouted(4, ModelShape(num_layers=3, topk=2, num_experts=8), padding=padding)
    assert packed.experts.shape == (4, 3, 2)
    assert (packed.experts[..., 0] != packed.experts[..., 1]).all()
    assert packed.live.tolist() == [True, False, True, False]
    assert packed.padding.tolist() == padding.tolist()
    with pytest.raises(ValueError, match=r"expected \(5,\)"):
        unrouted(5, ModelShape(3, 2, 8), padding=padding)
