"""The canary on a real model: its own routes, drifted routers, and every mistake."""

import dataclasses

import bench
import numpy as np
import torch

from routereplay.client.packed import PackedRoutes
from routereplay.patches.megatron import ReplayMisrouted, enable_router_replay

EXPERTS, TOPK, BATCH = 16, 4, 2


def build(recompute=None):
    model = bench.build(
        recompute, num_moe_experts=EXPERTS, moe_router_topk=TOPK, moe_layer_freq=[0, 1, 1, 1]
    )
    with torch.no_grad():
        for router in bench.routers(model):  # Wide apart, so that ties are rare.
            router.weight.mul_(50)
    return model


def loss_of(model, length, seed=5):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, bench.VOCAB, (BATCH, length), generator=generator)
    positions = torch.arange(length).expand(BATCH, length)
    mask = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)[None, None]
    return model(tokens, positions, mask, labels=tokens).float().mean()


def record(model, length, seed=5):
    """Return the routes `[rows, layers, topk]` that the model chooses by itself."""
    recorders = {}
    for router in bench.routers(model):
        router.router_replay = recorders[router.layer_number - 1] = bench.Recorder()
    with torch.no_grad():
        loss_of(model, length, seed)
    experts = np.zeros((BATCH * length, bench.LAYERS, TOPK), np.uint8)
    for layer_idx, recorder in recorders.items():
        by_sequence = recorder.ids.view(length, BATCH, TOPK).transpose(0, 1)
        experts[:, layer_idx] = by_sequence.reshape(-1, TOPK).numpy()
    for router in bench.routers(model):
        router.router_replay = None
    return experts


def pack(experts, live=None, padding=None):
    none = np.zeros(len(experts), bool)
    return PackedRoutes(
        experts, none if live is None else live, none if padding is None else padding, EXPERTS
    )


def row_ids(length):
    return torch.arange(BATCH * length).view(BATCH, length)


def step(model, replay, packed, length, ids=None):
    with replay.step():
        replay.begin_microbatch(packed, row_ids(length) if ids is None else ids)
        loss_of(model, length).backward()
    return replay.last_step


def own_routes(drift, length=256, every=1, steps=3, layer=None):
    """Replay a model's own routes, with routers that moved since by `drift`."""
    model = build("full")
    packed = pack(record(model, length))
    bench.perturb_routers(model, drift)
    replay = enable_router_replay(model, canary_every=every, canary_layer=layer)
    reports = [step(model, replay, packed, length) for _ in range(steps)]
    return [[dataclasses.asdict(reading) for reading in report.canary] for report in reports]


def rows_late(experts, length):
    return np.roll(experts, 1, axis=0)


def rows_early(experts, length):
    return np.roll(experts, -1, axis=0)


def layers_swapped(experts, length):
    return experts[:, [0, 2, 1, 3]]


def batch_major(experts, length):
    return experts.reshape(length, BATCH, *experts.shape[1:]).swapaxes(0, 1).reshape(experts.shape)


def trajectories_swapped(experts, length):
    return np.roll(experts, length, axis=0)


def half_of_another_batch(experts, length):
    """What a rank has that takes contiguous rows for zigzag ones: half of them are right."""
    wrong = experts.copy().reshape(BATCH, length, *experts.shape[1:])
    other = np.roll(wrong, 1, axis=0)
    wrong[:, length // 2 :] = other[:, : length // 2]
    return wrong.reshape(experts.shape)


def a_quarter_stale(experts, length):
    wrong = experts.copy()
    wrong[: len(wrong) // 4] = experts[-1]
    return wrong


def last_layer_drafted(experts, length):
    wrong = experts.copy()
    wrong[:, -1] = np.random.default_rng(1).random((len(wrong), EXPERTS)).argsort(-1)[:, :TOPK]
    return wrong


def mistake(name, length=256, drift=0.0, layer=None):
    """Return what the canary says about recorded routes that were mixed up."""
    model = build("full")
    experts = record(model, length)
    bench.perturb_routers(model, drift)
    replay = enable_router_replay(model, canary_layer=layer)
    try:
        step(model, replay, pack(np.ascontiguousarray(globals()[name](experts, length))), length)
    except ReplayMisrouted as error:
        return {"code": error.code, "message": str(error), "details": error.details}
    return {"code": None, "reading": dataclasses.asdict(replay.last_step.canary[0])}


def wrong_context_rank():
    """Rows of the other context-parallel rank, whose tokens this rank never sees."""
    length = 256
    model = build()
    experts = np.concatenate([record(model, length, seed) for seed in (5, 6)])
    replay = enable_router_replay(model)
    try:
        step(model, replay, pack(experts), length, ids=row_ids(length) + BATCH * length)
    except ReplayMisrouted as error:
        return str(error)
    return None


def rows_without_routes():
    """Live and padding rows hold ids that mean nothing; they must not count."""
    length = 512
    model = build()
    experts = record(model, length)
    kinds = np.arange(len(experts)) % 4
    live, padding = kinds == 1, kinds == 2
    experts[live | padding] = [0, 1, 2, 3]
    replay = enable_router_replay(model, canary_layer=2)
    report = step(model, replay, pack(experts, live, padding), length)
    return {"rows": list(report.rows), "reading": dataclasses.asdict(report.canary[0])}
