"""Rows gathered on the host and on the device agree, ahead of time or not."""

import numpy as np
import pytest
import torch

pytest.importorskip("megatron.core")

from routereplay.client.packed import PackedRoutes
from routereplay.patches.megatron import ReplayMismatch
from routereplay.patches.megatron.placement import RouterRows
from routereplay.patches.replay import staging as staging_module
from routereplay.patches.replay.microbatch import ModelRouting
from routereplay.patches.replay.staging import Stager

pytestmark = pytest.mark.megatron

CPU = torch.device("cpu")
EXPERTS = 1 + np.arange(5 * 4 * 2, dtype=np.uint8).reshape(5, 4, 2)
LIVE = np.array([False, True, False, False, True])
PADDING = np.array([False, False, True, False, False])
ROWS = [4, 0, 2]
PLACES = pytest.mark.parametrize("place", ["host", "device"])


@pytest.fixture(autouse=True)
def device_rows_on_the_cpu(monkeypatch):
    """Take row ids of type int32 for row ids on a device: the CPU has but one memory."""
    monkeypatch.setattr(
        staging_module, "is_on_host", lambda rows: rows.dtype == torch.int64, raising=True
    )


def packed(experts=EXPERTS, live=LIVE, padding=PADDING, num_experts=64, layer_start=0):
    return PackedRoutes(experts, live, padding, num_experts, layer_start)


def stage(routes, rows, place="host", layer_idxs=(0, 1, 2, 3), stager=None):
    dtype = torch.int64 if place == "host" else torch.int32
    placed = RouterRows(torch.tensor(rows, dtype=dtype), (len(rows), 1))
    stager = stager or Stager(CPU)
    routing = ModelRouting(layer_idxs, routes.experts.shape[2], routes.num_experts)
    return stager.fill(stager.take(routes, placed, routing))


@PLACES
def test_rows_and_their_kinds_are_picked_together(place):
    microbatch = stage(packed(), ROWS, place)
    assert microbatch.ids_LTK.tolist() == EXPERTS[ROWS].transpose(1, 0, 2).tolist()
    assert microbatch.live_T.tolist() == [True, False, False]
    assert microbatch.padding_T.tolist() == [False, False, True]
    assert microbatch.counts.tolist() == [0, 1, 1]
    assert microbatch.has_live


@PLACES
@pytest.mark.parametrize("layer_idxs", [(1,), (1, 2), (0, 2), (0, 1, 3), (3, 1)])
def test_only_the_layers_of_the_routers_are_copied_in_their_order(place, layer_idxs):
    microbatch = stage(packed(), ROWS, place, layer_idxs)
    assert microbatch.ids_LTK.tolist() == EXPERTS[ROWS][:, layer_idxs].transpose(1, 0, 2).tolist()


def test_planes_are_counted_from_the_first_recorded_layer():
    microbatch = stage(packed(layer_start=10), ROWS, layer_idxs=(11, 13))
    assert microbatch.ids_LTK.tolist() == EXPERTS[ROWS][:, [1, 3]].transpose(1, 0, 2).tolist()


def test_long_runs_of_rows_and_scattered_rows_are_copied_alike():
    experts = np.random.default_rng(0).integers(1, 200, (400, 3, 2)).astype(np.uint8)
    none = np.zeros(400, bool)
    routes = packed(experts, none, none, num_experts=256)
    runs = [*range(300, 400), *range(100), 200]
    scattered = np.random.default_rng(1).permutation(400).tolist()
    for rows in (runs, scattered):
        staged = stage(routes, rows, layer_idxs=(0, 2)).ids_LTK
        assert staged.tolist() == experts[rows][:, [0, 2]].transpose(1, 0, 2).tolist()


def test_live_rows_of_other_ranks_cost_nothing_here():
    assert not stage(packed(), [0, 2]).has_live


def test_more_than_256_experts_are_signed_on_the_device():
    microbatch = stage(packed(EXPERTS.astype(np.uint16) + 300, num_experts=512), ROWS)
    assert microbatch.ids_LTK.dtype == torch.int16
    assert int(microbatch.ids_LTK.min()) == 301


@pytest.mark.parametrize("rows", [[0, 5], [-1, 0]])
def test_a_row_that_is_not_there_is_refused_on_the_host(rows):
    with pytest.raises(ReplayMismatch, match="rows 0 to 4"):
        stage(packed(), rows)


def test_rows_that_are_not_there_are_counted_on_the_device():
    assert stage(packed(), [-1, 0, 5], "device").counts[0] == 2


def test_a_refused_microbatch_gives_its_buffers_back():
    stager = Stager(CPU)
    for _ in range(3):
        with pytest.raises(ReplayMismatch):
            stage(packed(), [9], stager=stager)
    assert stager.ring.depth == 1


def test_buffers_serve_the_next_microbatch_once_every_router_has_read():
    stager = Stager(CPU)
    first = stage(packed(), ROWS, stager=stager, layer_idxs=(0, 1))
    first.read()
    first.keep()
    first.read()
    assert not first.is_read
    second = stage(packed(), [0], stager=stager, layer_idxs=(0, 1))
    assert second.slot is not first.slot
    first.read()
    assert first.is_read
    assert stage(packed(), [3], stager=stager).slot is first.slot
    assert stager.ring.depth == 2


def test_buffers_grow_when_a_longer_microbatch_comes():
    none = np.zeros(300_000, bool)
    long = np.tile(np.array([[[1, 2]] * 4], np.uint8), (len(none), 1, 1))
    stager = Stager(CPU)
    stage(packed(), ROWS, stager=stager).forget()
    microbatch = stage(packed(long, none, none), [*range(len(none))], stager=stager)
    assert microbatch.ids_LTK.tolist()[3][-1] == [1, 2]
    assert stager.ring.depth == 1


def test_a_dense_plane_is_found_behind_padding_that_is_not_zero():
    experts = EXPERTS.copy()
    experts[~PADDING, 2] = 0
    with pytest.raises(ReplayMismatch, match=r"layers \[2\]"):
        stage(packed(experts), ROWS)
