"""Trajectories in rows of one length, and back."""

import numpy as np
import pytest
from support.trajectories import EXPERTS, LAYERS, TOPK, conversation, expected_row, trajectory

from routereplay.client import ModelShape
from routereplay.parity.packed_rows import lay_out, pack_rows

SHAPE = ModelShape(LAYERS, TOPK, EXPERTS)


def test_rows_are_filled_in_order_and_none_is_empty():
    assert lay_out([4, 4, 3, 8, 1], 8) == [[0, 1], [2], [3], [4]]


def test_a_trajectory_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="a trajectory of 9 tokens does not fit a row of 8"):
        lay_out([3, 9], 8)


@pytest.mark.parametrize("backwards", [False, True])
def test_every_token_and_route_is_found_again(backwards):
    made = [conversation((3, 4), (2, 3), first_token=100 * n) for n in range(3)]
    trajectories = [trajectory(*turns, trajectory_id=f"t{n}") for n, (turns, _) in enumerate(made)]
    tokens = [row for _, row in made]
    trained = [np.array([3, 4, 5, 6, 9, 10, 11])] * 3
    rows = pack_rows(trajectories, tokens, trained, SHAPE, 28, backwards=backwards)
    whole = np.concatenate(tokens)
    seen = []
    for row in rows:
        real = row.flat >= 0
        assert (row.token_ids[real] == whole[row.flat[real]]).all()
        assert (row.routes.padding == ~real).all()
        assert row.cu_seqlens[-1] == 28
        seen += row.flat[real].tolist()
        for index in np.flatnonzero(real & ~row.routes.live):
            member, position = divmod(int(row.flat[index]), len(tokens[0]))
            expected = expected_row(tokens[member], position)
            assert (row.routes.experts[index] == expected).all()
    assert sorted(seen) == list(range(len(whole)))
