"""Row order at the router, against the formulas of Megatron-Core's own slicing."""

import inspect

import pytest
import torch

pytest.importorskip("megatron.core")

from routereplay.patches.megatron import (
    ReplayMismatch,
    context_parallel_rows_padded,
    context_parallel_rows_thd,
)
from routereplay.patches.megatron.placement import router_rows

pytestmark = pytest.mark.megatron


def test_a_router_flattens_position_first():
    rows = router_rows(torch.arange(6).view(2, 3))
    assert rows.rows.tolist() == [0, 3, 1, 4, 2, 5]
    assert rows.input_shape == (3, 2)


def test_a_packed_row_keeps_its_order():
    rows = router_rows(torch.arange(5).view(1, 5))
    assert rows.rows.tolist() == [0, 1, 2, 3, 4]
    assert rows.input_shape == (5, 1)


def test_sequence_parallelism_scatters_positions_after_the_transpose():
    row_ids = torch.arange(8).view(2, 4)
    shards = [router_rows(row_ids, sp_size=2, sp_rank=rank) for rank in range(2)]
    assert shards[0].rows.tolist() == [0, 4, 1, 5]
    assert shards[1].rows.tolist() == [2, 6, 3, 7]
    assert [shard.input_shape for shard in shards] == [(2, 2), (2, 2)]


def test_positions_that_do_not_divide_by_the_tensor_parallel_size_are_refused():
    with pytest.raises(ReplayMismatch, match="3 tokens"):
        router_rows(torch.arange(3).view(1, 3), sp_size=2, sp_rank=0)


@pytest.mark.parametrize(
    "row_ids", [torch.arange(4), torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bool)]
)
def test_row_ids_must_be_integers_shaped_like_input_ids(row_ids):
    with pytest.raises(ReplayMismatch, match="row_ids have shape"):
        router_rows(row_ids)


def test_narrow_row_ids_are_widened():
    assert router_rows(torch.arange(4, dtype=torch.int32).view(1, 4)).rows.dtype == torch.int64


def test_a_padded_batch_is_cut_in_zigzag_by_context_parallelism():
    rows = [context_parallel_rows_padded(2, 8, cp_size=2, cp_rank=rank) for rank in range(2)]
    assert rows[0].tolist() == [[0, 1, 6, 7], [8, 9, 14, 15]]
    assert rows[1].tolist() == [[2, 3, 4, 5], [10, 11, 12, 13]]


@pytest.mark.parametrize("cp_size", [2, 4])
def test_the_zigzag_is_the_one_of_megatron_core(cp_size, monkeypatch):
    from megatron.core import parallel_state, utils

    batch = torch.arange(2 * 16).view(2, 16)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, **_: self)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, **_: self)
    monkeypatch.setattr(parallel_state, "get_context_parallel_world_size", lambda: cp_size)
    original_tensor = torch.tensor
    monkeypatch.setattr(
        torch, "tensor", lambda *a, **k: original_tensor(*a, **(k | {"pin_memory": False}))
    )
    parameters = inspect.signature(utils.get_batch_on_this_cp_rank).parameters
    options = {"is_hybrid_cp": False} if "is_hybrid_cp" in parameters else {}  # From 0.19 on.
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: cp_size)
    for rank in range(cp_size):
        monkeypatch.setattr(parallel_state, "get_context_parallel_rank", lambda rank=rank: rank)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda *_, rank=rank: rank)
        theirs = utils.get_batch_on_this_cp_rank({"tokens": batch.clone()}, **options)["tokens"]
        ours = context_parallel_rows_padded(2, 16, cp_size=cp_size, cp_rank=rank)
        assert torch.equal(ours, theirs)


def test_packed_sequences_are_cut_in_zigzag_one_by_one():
    cu_seqlens = torch.tensor([0, 4, 12])
    rows = [context_parallel_rows_thd(cu_seqlens, cp_size=2, cp_rank=rank) for rank in range(2)]
    assert rows[0].tolist() == [[0, 3, 4, 5, 10, 11]]
    assert rows[1].tolist() == [[1, 2, 6, 7, 8, 9]]


def test_every_row_lands_on_exactly_one_rank_of_tensor_and_context():
    cu_seqlens = torch.tensor([0, 16, 24, 32])
    seen = [
        row
        for cp_rank in range(2)
        for sp_rank in range(2)
        for row in router_rows(
            context_parallel_rows_thd(cu_seqlens, cp_size=2, cp_rank=cp_rank),
            sp_size=2,
            sp_rank=sp_rank,
        ).rows.tolist()
    ]
    assert sorted(seen) == list(range(32))


def test_one_context_rank_has_every_row():
    assert context_parallel_rows_padded(2, 3, cp_size=1, cp_rank=0).tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ]


def test_a_sequence_that_does_not_divide_is_refused():
    with pytest.raises(ReplayMismatch, match="does not divide by 4"):
        context_parallel_rows_thd(torch.tensor([0, 4, 10]), cp_size=2, cp_rank=0)
