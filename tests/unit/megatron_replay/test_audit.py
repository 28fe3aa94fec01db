"""Every id that a dispatcher could not execute is counted, whatever its place."""

import itertools

import pytest
import torch

pytest.importorskip("megatron.core")

from routereplay.patches.replay.rows import audit

pytestmark = pytest.mark.megatron


def counts(ids, num_experts=256, live=None, padding=None, dtype=torch.uint8):
    ids_TLK = torch.tensor(ids, dtype=dtype)
    none = torch.zeros(len(ids_TLK), dtype=torch.bool)
    live_T = none if live is None else torch.tensor(live)
    padding_T = none if padding is None else torch.tensor(padding)
    return audit(ids_TLK, live_T, padding_T, num_experts).tolist()


@pytest.mark.parametrize("topk", [1, 2, 3, 4, 5, 8])
def test_distinct_ids_are_sound(topk):
    assert counts([[list(range(topk))] * 3] * 2) == [0, 0, 0]


@pytest.mark.parametrize("topk", [2, 3, 4, 5, 8])
def test_a_repeated_id_is_found_in_every_pair_of_places(topk):
    for left, right in itertools.combinations(range(topk), 2):
        ids = list(range(10, 10 + topk))
        ids[right] = ids[left]
        assert counts([[list(range(topk)), ids]]) == [1, 0, 0], (left, right)


def test_each_layer_of_a_bad_row_counts():
    assert counts([[[7, 7], [1, 2], [0, 0]], [[1, 2], [3, 4], [5, 6]]]) == [2, 0, 0]


def test_an_id_out_of_range_is_found():
    assert counts([[[1, 8]], [[1, 7]]], num_experts=8) == [1, 0, 0]


def test_every_id_of_256_experts_is_in_range():
    assert counts([[[0, 255]]], num_experts=256) == [0, 0, 0]


def test_a_negative_id_is_found():
    assert counts([[[-1, 3]], [[299, 300]]], num_experts=300, dtype=torch.int16) == [2, 0, 0]


def test_ids_under_a_live_row_do_not_count_and_padding_rows_do():
    ids = [[[9, 9]], [[9, 9]], [[1, 2]]]
    assert counts(ids, live=[True, False, True], padding=[False, True, False]) == [1, 2, 1]
