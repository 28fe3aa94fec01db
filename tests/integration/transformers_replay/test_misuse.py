"""Everything that must stop training instead of training on other experts."""

import pytest

pytest.importorskip("transformers")

import numpy as np
import torch
import transformers
from integration.transformers_replay import bench

from routereplay.patches.transformers import (
    DenseModel,
    ReplayIncomplete,
    ReplayMismatch,
    ReplayMisrouted,
    ReplayStateError,
    ReplayUnsupported,
    RoutedModel,
    UnknownModel,
    enable_router_replay,
)
from routereplay.patches.transformers.weights import scaled_sigmoid


@pytest.fixture
def model():
    return bench.build()


@pytest.fixture
def ids():
    return bench.tokens()


@pytest.fixture
def replay(model):
    replay = enable_router_replay(model, canary_every=0)
    yield replay
    replay.disable()


def test_a_forward_without_a_microbatch(model, replay, ids):
    with pytest.raises(ReplayStateError, match="no open microbatch"), replay.step():
        model(ids)


def test_a_second_forward_of_a_microbatch(model, replay, ids):
    with pytest.raises(ReplayStateError, match="router call 2"), replay.step():
        replay.begin_microbatch(bench.pack(bench.random_routes(model)), bench.row_ids())
        model(ids)
        model(ids)


def test_a_microbatch_that_is_skipped(model, replay):
    packed = bench.pack(bench.random_routes(model))
    with pytest.raises(ReplayIncomplete, match="0 router calls for 1 microbatches"), replay.step():
        replay.begin_microbatch(packed, bench.row_ids())


def test_a_forward_whose_backward_never_comes(model, replay, ids):
    packed = bench.pack(bench.random_routes(model))
    with pytest.raises(ReplayIncomplete, match="backward of 1 forwards never came"), replay.step():
        replay.begin_microbatch(packed, bench.row_ids())
        model(ids)


def test_rows_of_another_shape(model, replay, ids):
    packed = bench.pack(bench.random_routes(model))
    with pytest.raises(ReplayMismatch, match="row_ids have the shape"), replay.step():
        replay.begin_microbatch(packed, bench.row_ids().t())
        model(ids)


def test_routes_of_a_model_with_other_experts(model, replay):
    packed = bench.pack(bench.random_routes(model))
    other = type(packed)(packed.experts, packed.live, packed.padding, num_experts=16)
    with pytest.raises(ReplayMismatch, match="another model"), replay.step():
        replay.begin_microbatch(other, bench.row_ids())


def test_an_expert_twice_in_a_row(model, replay):
    experts = bench.random_routes(model)
    experts[3, 2] = 5
    with pytest.raises(ReplayMismatch, match="name an expert twice"), replay.step():
        replay.begin_microbatch(bench.pack(experts), bench.row_ids())


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_backward_of_another_microbatch_than_the_latest(model, replay, reentrant):
    """Its recompute would execute the latest one's experts: right in number, wrong in kind."""
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    losses = []
    with pytest.raises((ReplayIncomplete, ReplayStateError), match="recompute"), replay.step():
        for seed in range(2):
            packed = bench.pack(bench.random_routes(model, seed))
            replay.begin_microbatch(packed, bench.row_ids())
            ids = bench.tokens(seed)
            losses.append(model(ids, labels=ids).loss)
        for loss in losses:
            loss.backward()


@pytest.mark.parametrize("shift", [1, -1])
def test_rows_of_a_neighbour(model, shift):
    ids = torch.randint(0, bench.VOCAB, (bench.BATCH, 600))
    rows = torch.arange(ids.numel()).view(ids.shape)
    with bench.executed(model) as seen, torch.no_grad():
        model(ids)
    experts = np.zeros((ids.numel(), bench.LAYERS, bench.TOPK), np.uint8)
    for layer_idx, calls in seen.items():
        experts[:, layer_idx] = calls[0].numpy()
    none = np.zeros(ids.numel(), bool)
    packed = bench.PackedRoutes(np.roll(experts, shift, axis=0), none, none, bench.EXPERTS)
    replay = enable_router_replay(model)

    with pytest.raises(ReplayMisrouted), replay.step():
        replay.begin_microbatch(packed, rows)
        model(ids, labels=ids).loss.backward()


def test_everything_that_is_wrong_is_listed_at_once_and_nothing_is_changed(model):
    model.get_decoder().layers[2].mlp.gate.register_forward_hook(lambda *_: None)
    routed = RoutedModel("qwen3_moe", num_layers=5, moe_layers=(1, 2), num_experts=8, topk=3)
    before = sum(len(module._forward_hooks) for module in model.modules())

    with pytest.raises(ReplayUnsupported) as raised:
        enable_router_replay(model, routed=routed)

    listed = "\n".join(raised.value.reasons)
    assert "4 decoder layers" in listed
    assert "layers [1, 2, 3] (0-based)" in listed
    assert "chooses 2 of 8 experts" in listed
    assert "forward hooks already" in listed
    assert sum(len(module._forward_hooks) for module in model.modules()) == before


def test_a_second_replay_on_the_same_model(model, replay):
    with pytest.raises(ReplayUnsupported, match="forward hooks already"):
        enable_router_replay(model)


def test_a_router_that_weighs_otherwise(model):
    with pytest.raises(ReplayUnsupported, match="raised AttributeError when probed"):
        enable_router_replay(model, weigh=scaled_sigmoid)
    model.config.norm_topk_prob = False
    half = lambda router, logits, ids: logits.softmax(-1).gather(1, ids) / 2  # noqa: E731
    with pytest.raises(ReplayUnsupported, match="weighs its experts otherwise"):
        enable_router_replay(model, weigh=half)


def test_a_dense_model_and_one_that_nobody_knows(monkeypatch):
    small = {k: v for k, v in bench.SMALL.items() if "expert" not in k and "moe" not in k}
    dense = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model("qwen3", **small)
    )
    with pytest.raises(DenseModel):
        enable_router_replay(dense)
    unknown = bench.build()
    monkeypatch.setattr(type(unknown.config), "model_type", "somebody_elses_moe")
    with pytest.raises(UnknownModel):
        enable_router_replay(unknown)
