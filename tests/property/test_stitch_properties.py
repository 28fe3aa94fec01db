"""Stitching what was split, and unpacking what was packed, gives back what was there."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.trajectories import expected_rows, trajectory, turn

from routereplay.client import pack_padded, pack_thd, stitch


@st.composite
def split_conversations(draw, trajectory_id="episode-0"):
    """One token sequence, cut into turns at any places; the whole of it is covered."""
    tokens = draw(st.lists(st.integers(0, 30), min_size=2, max_size=24))
    length = len(tokens)
    ends = sorted(draw(st.sets(st.integers(2, length), max_size=4)) | {length})
    turns, begin = [], 0
    for index, end in enumerate(ends):
        prompt_len = draw(st.integers(max(begin, 1), end - 1))
        # A later turn may leave out rows that the store has already.
        row_start = draw(st.integers(0, max(begin - 1, 0)))
        turns.append(
            turn(
                tokens[:prompt_len],
                tokens[prompt_len:end],
                request_id=f"r{index}",
                row_start=row_start,
            )
        )
        begin = end
    return trajectory(*turns, trajectory_id=trajectory_id), np.asarray(tokens, np.int32)


@given(split_conversations())
def test_stitching_a_split_sequence_is_the_identity(conversation):
    whole, tokens = conversation

    stitched = stitch(whole, tokens)

    last = len(tokens) - 1
    assert np.array_equal(stitched.experts[:last], expected_rows(tokens, 0, last))
    assert stitched.missing.tolist() == [False] * last + [True]


@given(st.lists(split_conversations(), min_size=1, max_size=4), st.data())
def test_unpacking_a_packed_row_is_the_identity(conversations, data):
    lengths = [len(tokens) for _, tokens in conversations]
    slots = [n + data.draw(st.integers(0, 5)) for n in lengths]
    bounds = np.cumsum([0, *slots])
    row = np.full(bounds[-1], 77, np.int64)
    for (_, tokens), start in zip(conversations, bounds, strict=False):
        row[start : start + len(tokens)] = tokens

    packed = pack_thd(
        [whole for whole, _ in conversations],
        row,
        cu_seqlens=np.cumsum([0, *lengths]),
        cu_seqlens_padded=bounds,
    )

    for (_, tokens), start in zip(conversations, bounds, strict=False):
        last = len(tokens) - 1
        rows = packed.experts[start : start + last]
        assert np.array_equal(rows, expected_rows(tokens, 0, last))
        assert packed.live[start + last]
    assert int(packed.padding.sum()) == bounds[-1] - sum(lengths)
    assert not (packed.live & packed.padding).any()


@given(st.lists(split_conversations(), min_size=1, max_size=4))
def test_a_padded_batch_holds_the_same_rows_as_a_packed_row(conversations):
    lengths = np.array([len(tokens) for _, tokens in conversations])
    table = np.zeros((len(lengths), lengths.max()), np.int32)
    for row, (_, tokens) in zip(table, conversations, strict=True):
        row[: len(tokens)] = tokens
    episodes = [whole for whole, _ in conversations]

    packed = pack_thd(
        episodes, [tokens for _, tokens in conversations], cu_seqlens=np.cumsum([0, *lengths])
    )
    padded = pack_padded(episodes, table, lengths=lengths)

    real = ~padded.padding
    assert np.array_equal(padded.live[real], packed.live)
    recorded = ~packed.live
    assert np.array_equal(padded.experts[real][recorded], packed.experts[recorded])
