"""Replay on real models of transformers: what is executed, and what is learnt from it."""

import pytest

pytest.importorskip("transformers")

import torch
from integration.transformers_replay import bench

from routereplay.patches.transformers import enable_router_replay

CHECKPOINTING = [None, True, False]
"""None, torch's reentrant kind, torch's other kind."""


def checkpointed(model, reentrant):
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def replayed(model, packed, ids, **options):
    replay = enable_router_replay(model, **options)
    try:
        with replay.step():
            replay.begin_microbatch(packed, bench.row_ids())
            result = bench.train(model, ids)
    finally:
        replay.disable()
    return *result, replay.last_step


@pytest.mark.parametrize("reentrant", CHECKPOINTING)
@pytest.mark.parametrize("model_type", bench.MODELS)
def test_replaying_a_models_own_routes_changes_no_bit(model_type, reentrant):
    ids = bench.tokens()
    model = checkpointed(bench.build(model_type), reentrant)
    loss, gradients = bench.train(model, ids)
    packed = bench.pack(bench.own_routes(model, ids))

    replayed_loss, replayed_gradients, report = replayed(model, packed, ids)

    assert replayed_loss == loss
    assert bench.difference(replayed_gradients, gradients) == 0.0
    assert report.rows.replayed == bench.ROWS
    assert report.recomputes == (0 if reentrant is None else report.router_calls)


@pytest.mark.parametrize("reentrant", CHECKPOINTING)
@pytest.mark.parametrize("model_type", bench.MODELS)
def test_every_row_executes_the_recorded_experts(model_type, reentrant):
    ids = bench.tokens()
    model = checkpointed(bench.build(model_type), reentrant)
    experts = bench.random_routes(model)

    with bench.executed(model) as seen:
        _, gradients, report = replayed(model, bench.pack(experts), ids, canary_every=0)

    assert sorted(seen) == list(range(4))[-len(seen) :] or model_type == "qwen2_moe"
    for layer_idx, calls in seen.items():
        assert len(calls) == (1 if reentrant is None else 2)
        for executed in calls:
            assert torch.equal(executed, torch.from_numpy(experts[:, layer_idx]).long())
    routers = [name for name in gradients if name.endswith((".gate.weight", ".router.weight"))]
    assert len(routers) == report.router_calls
    assert all(gradients[name].norm() > 0 for name in routers)


@pytest.mark.parametrize("reentrant", CHECKPOINTING)
def test_gradients_are_those_of_a_router_that_is_told_its_choice(reentrant, monkeypatch):
    """The reference is transformers' own router with its top-k replaced: no code of ours."""
    ids = bench.tokens()
    model = checkpointed(bench.build(), reentrant)
    experts = bench.random_routes(model)
    loss, gradients, _ = replayed(model, bench.pack(experts), ids, canary_every=0)

    planes = {
        layer.mlp.gate: torch.from_numpy(experts[:, layer_idx]).long()
        for layer_idx, layer in enumerate(model.get_decoder().layers)
        if hasattr(layer.mlp, "gate")
    }
    topk = torch.topk
    current = []
    hooks = [
        gate.register_forward_pre_hook(lambda gate, _: current.append(planes[gate]))
        for gate in planes
    ]

    def told(values, k, dim=-1):
        told_ids = current.pop()
        assert topk(values, k, dim=dim).indices.shape == told_ids.shape
        return values.gather(1, told_ids), told_ids

    monkeypatch.setattr(torch, "topk", told)
    expected_loss, expected = bench.train(model, ids)
    for hook in hooks:
        hook.remove()

    assert loss == expected_loss
    assert bench.difference(gradients, expected) == 0.0


def test_a_live_row_takes_the_routers_choice_and_a_padding_row_its_own():
    ids = bench.tokens()
    model = bench.build()
    experts = bench.random_routes(model)
    live, padding = [1, 7], [5, 11]

    with bench.executed(model) as seen:
        *_, report = replayed(model, bench.pack(experts, live, padding), ids, canary_every=0)
    with bench.executed(model) as alone, torch.no_grad():
        model(ids)

    assert (report.rows.live, report.rows.padding) == (2, 2)
    # Only in the first routed layer are the inputs of both runs the same.
    assert torch.equal(seen[1][0][live], alone[1][0][live])
    told = [row for row in range(bench.ROWS) if row not in live]
    assert torch.equal(seen[1][0][told], torch.from_numpy(experts[told, 1]).long())


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_live_row_executes_at_recompute_what_it_executed_before(reentrant):
    """Even if the router would choose otherwise by then."""
    ids = bench.tokens()
    model = checkpointed(bench.build(), reentrant)
    packed = bench.pack(bench.random_routes(model), live=range(bench.ROWS))
    replay = enable_router_replay(model)

    with bench.executed(model) as seen, replay.step():
        replay.begin_microbatch(packed, bench.row_ids())
        loss = model(ids, labels=ids).loss
        with torch.no_grad():
            for layer in model.get_decoder().layers[1:]:
                layer.mlp.gate.weight.mul_(1.0001)
        loss.backward()
    assert all(torch.equal(*calls) for calls in seen.values())


def test_microbatches_accumulate():
    batches = [bench.tokens(seed) for seed in range(3)]
    model = checkpointed(bench.build(), reentrant=False)
    routes = [bench.own_routes(model, ids) for ids in batches]
    model.zero_grad()
    for ids in batches:
        model(ids, labels=ids).loss.backward()
    expected = bench.gradients(model)

    replay = enable_router_replay(model)
    model.zero_grad()
    with replay.step():
        for ids, experts in zip(batches, routes, strict=True):
            packed = bench.pack(experts)
            replay.prefetch(packed, bench.row_ids())
            replay.begin_microbatch(packed, bench.row_ids())
            model(ids, labels=ids).loss.backward()

    assert bench.difference(bench.gradients(model), expected) == 0.0
    assert replay.last_step.microbatches == 3
    assert replay.last_step.prefetched == 3


@pytest.mark.parametrize("reentrant", CHECKPOINTING)
def test_several_forwards_before_one_backward(reentrant):
    """As losses over pairs have it."""
    batches = [bench.tokens(seed) for seed in range(2)]
    model = checkpointed(bench.build(), reentrant)
    packed = [bench.pack(bench.random_routes(model, seed)) for seed in range(2)]
    alone = [
        replayed(model, routes, ids, canary_every=0)[1]
        for routes, ids in zip(packed, batches, strict=True)
    ]

    replay = enable_router_replay(model, canary_every=0)
    model.zero_grad()
    with replay.step():
        losses = []
        for routes, ids in zip(packed, batches, strict=True):
            replay.begin_microbatch(routes, bench.row_ids())
            losses.append(model(ids, labels=ids).loss)
        sum(losses).backward()

    both = {name: alone[0][name] + alone[1][name] for name in alone[0]}
    assert bench.difference(bench.gradients(model), both) < 1e-5


def test_a_pass_for_log_probs_replays_and_one_in_bypass_does_not():
    ids = bench.tokens()
    model = bench.build()
    experts = bench.random_routes(model)
    replay = enable_router_replay(model, canary_every=0)
    with bench.executed(model) as seen, torch.no_grad():
        with replay.step():
            replay.begin_microbatch(bench.pack(experts), bench.row_ids())
            model(ids)
        with replay.bypass():
            model(ids)

    assert torch.equal(seen[1][0], torch.from_numpy(experts[:, 1]).long())
    assert not torch.equal(seen[1][1], seen[1][0])


def test_disable_puts_back_exactly_what_was_there():
    model = bench.build()
    before = {name: dict(m._forward_hooks) for name, m in model.named_modules()}
    replay = enable_router_replay(model)
    assert any(m._forward_hooks for m in model.modules())

    replay.disable()
    replay.disable()

    assert {name: dict(m._forward_hooks) for name, m in model.named_modules()} == before
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_compiled_model_replays():
    ids = bench.tokens()
    model = bench.build()
    experts = bench.random_routes(model)
    packed = bench.pack(experts)
    loss, gradients, _ = replayed(model, packed, ids, canary_every=0)
    replay = enable_router_replay(model, canary_every=0)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        model.zero_grad()
        with replay.step():
            replay.begin_microbatch(packed, bench.row_ids())
            compiled_loss = compiled(ids, labels=ids).loss
            compiled_loss.backward()

    assert compiled_loss.item() == pytest.approx(loss, rel=1e-6)
    assert bench.difference(bench.gradients(model), gradients) < 1e-5
