"""The layer map of a hybrid pattern, and what counts as the same configuration."""

from types import SimpleNamespace

import pytest

pytest.importorskip("megatron.core")

from routereplay.patches.megatron.agreement import hybrid_layer_map, model_reasons
from routereplay.patches.megatron.discovery import Discovery, FoundChunk, FoundRouter
from routereplay.patches.models import RoutedModel

pytestmark = pytest.mark.megatron


def model(**fields):
    plain = {"num_layers": 4, "moe_layers": (0, 2, 3), "num_experts": 8, "topk": 2}
    return RoutedModel("tiny", **(plain | fields))


def reasons(sampled, layer_idxs=(0, 2, 3), **fields):
    plain = {
        "num_layers": 4,
        "num_moe_experts": 8,
        "moe_router_topk": 2,
        "moe_layer_freq": [1, 0, 1, 1],
    }
    routers = tuple(FoundRouter(None, idx + 1, idx) for idx in layer_idxs)
    chunk = FoundChunk(0, SimpleNamespace(), SimpleNamespace(**(plain | fields)), routers)
    return model_reasons(sampled, Discovery(chunks=[chunk]))


@pytest.mark.parametrize("pattern", ["*E*-*E*E", "*E*-|*E*E", "*E|*-|*E|*E", "*E*-*E*E/*E/*E"])
def test_the_nth_moe_letter_is_the_nth_moe_layer(pattern):
    assert hybrid_layer_map(model(), pattern) == {2: 0, 6: 2, 8: 3}


def test_a_pattern_with_a_letter_for_each_layer_numbers_them_alike():
    sampled = model(num_layers=6, moe_layers=(1, 3, 5))
    assert hybrid_layer_map(sampled, "MEMEME") == {2: 1, 4: 3, 6: 5}


def test_a_pattern_with_other_moe_layers_is_refused():
    with pytest.raises(ValueError, match="2 MoE layers"):
        hybrid_layer_map(model(), "*E*E")


def test_the_same_configuration_has_no_reasons():
    assert reasons(model()) == []


def test_a_stage_with_some_of_the_layers_has_no_reasons():
    assert reasons(model(), layer_idxs=(2,)) == []


def test_a_frequency_of_one_number_is_read_as_megatron_reads_it():
    sampled = model(moe_layers=(0, 2))
    assert reasons(sampled, layer_idxs=(0, 2), moe_layer_freq=2) == []
    (reason,) = reasons(model(moe_layers=(1, 3)), layer_idxs=(), moe_layer_freq=2)
    assert "disagree on layers [0, 1, 2, 3]" in reason


def test_a_router_on_a_dense_layer_is_named():
    (reason,) = reasons(model(), layer_idxs=(0, 1))
    assert "layer 2 (1-based) would replay layer 1 (0-based)" in reason


def test_the_same_thing_wrong_on_two_chunks_is_said_once():
    sampled = model(topk=3)
    chunk = SimpleNamespace(num_layers=4, num_moe_experts=8, moe_router_topk=2, moe_layer_freq=1)
    found = [FoundChunk(stage, SimpleNamespace(), chunk, ()) for stage in (0, 1)]
    listed = model_reasons(sampled, Discovery(chunks=found))
    assert len(listed) == len(set(listed)) == 2


def test_what_the_registry_does_not_know_is_not_checked():
    odd = {"moe_router_score_function": "sigmoid", "moe_router_topk_scaling_factor": 3.0}
    assert reasons(model(), **odd) == []


def test_unset_fields_count_as_their_defaults():
    sampled = model(score_function="softmax", renormalizes=True, scaling_factor=1.0)
    assert reasons(sampled, moe_router_topk_scaling_factor=None) == []


def test_the_order_of_a_softmax_is_not_checked_for_one_expert_or_a_sigmoid():
    one = model(topk=1, score_function="softmax", renormalizes=True)
    assert reasons(one, moe_router_topk=1, moe_router_pre_softmax=True) == []
    sigmoid = model(score_function="sigmoid", renormalizes=True)
    fields = {"moe_router_score_function": "sigmoid", "moe_router_pre_softmax": True}
    assert reasons(sigmoid, **fields) == []
