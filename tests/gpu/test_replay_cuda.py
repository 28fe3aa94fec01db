"""Replay on a GPU in bfloat16: bit for bit, without waiting, one copy a microbatch."""

import contextlib
import functools
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("megatron.core")

import megatron_model as gpu
import torch

from routereplay.client import ModelShape, unrouted
from routereplay.patches.megatron import (
    ReplayIncomplete,
    ReplayMisrouted,
    ReplayWatch,
    enable_router_replay,
)
from routereplay.patches.megatron.layer import MegatronLayer

pytestmark = [pytest.mark.gpu, pytest.mark.megatron]

# Two experts a token: a sum of two is the same in either order, even with atomic adds.
SIZE = gpu.Size(4, 256, 4, 16, 2, 128, 512, 4, 512)
RECOMPUTES = pytest.mark.parametrize("recompute", ["none", "selective", "full"])


@pytest.fixture
def no_waiting(monkeypatch):
    """Return a function that guards another: it raises if the host waits for the device."""

    def guard(function):
        @functools.wraps(function)
        def guarded(*arguments, **fields):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*arguments, **fields)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return guarded

    monkeypatch.setattr(
        MegatronLayer, "get_replay_topk", guard(MegatronLayer.get_replay_topk), raising=True
    )
    return guard


def build(device, recompute="none"):
    torch.manual_seed(0)
    model = gpu.build(SIZE, recompute, device)
    with torch.no_grad():
        for router in gpu.routers(model):  # Wide apart, so that ties are rare.
            router.weight.mul_(20)
    return model


def train(model, batch):
    model.zero_grad(set_to_none=True)
    loss = batch.output(model).float().mean()
    loss.backward()
    return loss.item(), gradients(model)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def replay_train(model, replay, packed, batch, ids=None):
    with replay.step():
        replay.begin_microbatch(packed, gpu.row_ids(SIZE) if ids is None else ids)
        return train(model, batch)


def difference(left, right):
    assert left[1].keys() == right[1].keys()
    apart = max(
        float((left[1][name].float() - right[1][name].float()).abs().max()) for name in left[1]
    )
    return max(apart, abs(left[0] - right[0]))


def random_routes(seed):
    shape = (SIZE.batch * SIZE.length, SIZE.layers, SIZE.experts)
    ids = np.random.default_rng(seed).random(shape).argsort(-1)[..., : SIZE.topk]
    return gpu.pack(np.ascontiguousarray(ids.astype(np.uint8)), SIZE)


class Maps:
    """Keeps the routing map of every router call on the device."""

    def __init__(self, model):
        self.seen = {router.layer_number - 1: [] for router in gpu.routers(model)}
        for router in gpu.routers(model):
            router.register_forward_hook(self._keep)

    def _keep(self, router, _inputs, outputs):
        self.seen[router.layer_number - 1].append(outputs[1].clone())

    def wrong(self, routes):
        """Return (layer, call) of every map that is not `routes[call]`."""
        return [
            (layer_idx, call)
            for layer_idx, maps in self.seen.items()
            for call, (found, packed) in enumerate(zip(maps, routes, strict=True))
            if not torch.equal(found.cpu(), expected_map(packed, layer_idx))
        ]


def expected_map(packed, layer_idx):
    ids = torch.from_numpy(packed.experts[:, layer_idx].astype(np.int64))
    by_row = torch.zeros(len(ids), SIZE.experts, dtype=torch.bool).scatter_(1, ids, True)
    return by_row.view(SIZE.batch, SIZE.length, -1).transpose(0, 1).reshape(len(ids), -1)


@RECOMPUTES
def test_replay_of_its_own_routes_is_the_live_run_bit_for_bit(device, no_waiting, recompute):
    model, batch = build(device, recompute), gpu.Batch.of(SIZE, 0, device)
    packed = gpu.record(model, batch, SIZE)
    live = train(model, batch)
    assert difference(train(model, batch), live) == 0.0, "live runs differ among themselves"
    replay = enable_router_replay(model)
    assert difference(replay_train(model, replay, packed, batch), live) == 0.0
    readings = replay.last_step.canary
    assert len(readings) == len(replay.layer_numbers)
    assert all(reading.overlap > 0.99 for reading in readings)
    assert replay.last_step.rows == (SIZE.batch * SIZE.length, 0, 0)


@RECOMPUTES
def test_half_of_the_rows_live_is_the_live_run_bit_for_bit(device, no_waiting, recompute):
    model, batch = build(device, recompute), gpu.Batch.of(SIZE, 0, device)
    packed = gpu.record(model, batch, SIZE)
    right = train(model, batch)
    live = np.arange(packed.num_tokens) % 2 == 1
    experts = packed.experts.copy()
    experts[live] = 255
    replay = enable_router_replay(model)
    found = replay_train(model, replay, gpu.pack(experts, SIZE, live), batch)
    assert difference(found, right) == 0.0
    assert replay.last_step.rows == (live.size // 2, live.size // 2, 0)


@pytest.mark.parametrize("ahead", [False, True])
def test_many_microbatches_before_a_slow_device_execute_their_own_routes(device, no_waiting, ahead):
    model = build(device, "full")
    routes = [random_routes(seed) for seed in range(12)]
    replay = enable_router_replay(model, canary_every=0)
    begin, prefetch = no_waiting(replay.begin_microbatch), no_waiting(replay.prefetch)
    maps, ids = Maps(model), gpu.row_ids(SIZE)
    batch = gpu.Batch.of(SIZE, 0, device)
    for _ in range(2):  # The second time, every buffer was used before.
        with replay.step():
            for index, packed in enumerate(routes):
                begin(packed, ids)
                if ahead and index + 1 < len(routes):
                    prefetch(routes[index + 1], ids)
                torch.cuda._sleep(20_000_000)
                batch.output(model).float().mean().backward()
        assert replay.last_step.prefetched == (len(routes) - 1 if ahead else 0)
    forward_and_recompute = [packed for packed in routes for _ in range(2)] * 2
    assert maps.wrong(forward_and_recompute) == []


def test_all_forwards_before_all_backwards_recompute_their_own_routes(device, no_waiting):
    model = build(device, "full")
    routes = [random_routes(seed) for seed in range(4)]
    replay = enable_router_replay(model, canary_every=0)
    batch, maps = gpu.Batch.of(SIZE, 0, device), Maps(model)
    with replay.step():
        losses = []
        for packed in routes:
            replay.begin_microbatch(packed, gpu.row_ids(SIZE))
            losses.append(batch.output(model).float().mean())
        for loss in losses:
            loss.backward()
    assert maps.wrong(routes * 2) == []


def test_row_ids_on_the_device_replay_the_same_without_waiting(device, no_waiting):
    model, packed = build(device, "full"), random_routes(1)
    batch, ids = gpu.Batch.of(SIZE, 0, device), gpu.row_ids(SIZE)
    replay = enable_router_replay(model, canary_every=0)
    right = replay_train(model, replay, packed, batch)
    begin = no_waiting(replay.begin_microbatch)
    on_device = ids.to(device)
    with replay.step():
        begin(packed, on_device)
        found = train(model, batch)
    assert difference(found, right) == 0.0


@pytest.mark.parametrize("fault", ["twice", "row"])
def test_a_bad_row_stops_the_step_at_its_end(device, fault):
    model, packed = build(device), random_routes(1)
    ids = gpu.row_ids(SIZE).to(device)
    if fault == "twice":
        packed.experts[5, 2] = 3
    else:
        ids[0, 0] = -1
    replay = enable_router_replay(model, canary_every=0)

    def step():
        with replay.step():
            replay.begin_microbatch(packed, ids)
            with contextlib.suppress(RuntimeError):  # A dispatcher may refuse it first.
                train(model, gpu.Batch.of(SIZE, 0, device))

    with pytest.raises(ReplayIncomplete, match="1 rows"):
        step()


def test_rows_that_shift_in_training_are_stopped_at_the_end_of_that_step(device, no_waiting):
    model, batch = build(device, "full"), gpu.Batch.of(SIZE, 0, device)
    right = gpu.record(model, batch, SIZE)
    wrong = gpu.pack(np.roll(right.experts, 1, axis=0), SIZE)
    replay = enable_router_replay(model, canary_layer=1)
    for _ in range(2):
        replay_train(model, replay, right, batch)
    with pytest.raises(ReplayMisrouted, match="step 3.* rows one late"):
        replay_train(model, replay, wrong, batch)


def test_a_first_step_on_shifted_rows_is_stopped_at_its_own_end(device):
    model, batch = build(device), gpu.Batch.of(SIZE, 0, device)
    experts = gpu.record(model, batch, SIZE).experts
    replay = enable_router_replay(model, canary_layer=1)
    with pytest.raises(ReplayMisrouted, match="rows one early"):
        replay_train(model, replay, gpu.pack(np.roll(experts, -1, axis=0), SIZE), batch)


@RECOMPUTES
def test_an_update_that_replays_its_own_recorded_pass_is_the_live_run(
    device, no_waiting, recompute
):
    model, batch = build(device, recompute), gpu.Batch.of(SIZE, 0, device)
    live, ids = train(model, batch), gpu.row_ids(SIZE)
    shape = ModelShape(SIZE.layers, SIZE.topk, SIZE.experts)
    replay = enable_router_replay(model)
    begin = no_waiting(replay.begin_microbatch)
    with replay.step(record=True):
        begin(unrouted(SIZE.batch * SIZE.length, shape), ids)
        recorded_run = train(model, batch)
    assert difference(recorded_run, live) == 0.0
    recorded = replay.last_recording.packed(0)
    maps = Maps(model)
    assert difference(replay_train(model, replay, recorded, batch), live) == 0.0
    assert maps.wrong([recorded] * (1 if recompute == "none" else 2)) == []


def test_a_watched_step_waits_for_nothing_before_its_end(device, no_waiting):
    model, packed = build(device, "full"), random_routes(1)
    batch, replay = gpu.Batch.of(SIZE, 0, device), enable_router_replay(model, canary_every=0)
    watch = ReplayWatch(prefix="")
    keep = no_waiting(watch.logprobs)
    with replay.step():
        replay.begin_microbatch(packed, gpu.row_ids(SIZE))
        trained = -batch.output(model).float()
        keep(trained, trained.detach() - 0.5, torch.ones_like(trained, dtype=torch.bool))
        trained.mean().backward()
    numbers = watch.finish(replay.last_step, step=1)
    assert numbers["ratio_p50"] == pytest.approx(np.exp(0.5))
    assert numbers["rows_replayed"] == SIZE.batch * SIZE.length


def test_a_microbatch_is_one_copy_to_the_device(device):
    from torch.profiler import ProfilerActivity, profile

    model, packed = build(device), random_routes(1)
    replay = enable_router_replay(model, canary_every=0)
    batch = gpu.Batch.of(SIZE, 0, device)
    replay_train(model, replay, packed, batch)
    with replay.step():
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            replay.begin_microbatch(packed, gpu.row_ids(SIZE))
            torch.cuda.synchronize()
        train(model, batch)
    copies = Counter(
        " ".join(event.name.split()[:2])
        for event in profiler.events()
        if event.name.startswith("Memcpy")
    )
    assert copies["Memcpy HtoD"] == 1
    assert copies["Memcpy DtoH"] == 0
