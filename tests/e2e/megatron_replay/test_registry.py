"""The Megatron model is the model that was sampled, or replay is not enabled."""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.slow]


def test_a_model_that_agrees_with_its_hugging_face_config_is_replayed(megatron):
    facts = megatron.run("registry.agreement", changes={}, overrides={})
    assert facts == {"reasons": [], "layers": [2, 3, 4]}


DIFFERENT = [
    ({"num_hidden_layers": 5}, {}, "num_layers is 4, deepseek_v3 has 5"),
    ({"n_routed_experts": 16}, {}, "num_moe_experts is 8, deepseek_v3 has 16"),
    ({"num_experts_per_tok": 3}, {}, "moe_router_topk is 2, deepseek_v3 has 3"),
    ({"first_k_dense_replace": 2}, {}, "disagree on layers [1]"),
    ({"first_k_dense_replace": 0}, {}, "disagree on layers [0]"),
    ({}, {"moe_layer_freq": 1}, "disagree on layers [0]"),
    ({"scoring_func": "sigmoid"}, {}, "moe_router_score_function is 'softmax'"),
    ({"norm_topk_prob": False}, {}, "moe_router_pre_softmax is False, deepseek_v3 has True"),
    ({"routed_scaling_factor": 2.5}, {}, "moe_router_topk_scaling_factor is 1.0"),
    ({}, {"moe_router_topk_scaling_factor": 2.5}, "moe_router_topk_scaling_factor is 2.5"),
]


@pytest.mark.parametrize(
    ("changes", "overrides", "words"), DIFFERENT, ids=[words for _, _, words in DIFFERENT]
)
def test_a_model_that_differs_from_its_config_is_refused(megatron, changes, overrides, words):
    facts = megatron.run("registry.agreement", changes=changes, overrides=overrides)
    assert any(words in reason for reason in facts["reasons"]), facts["reasons"]
    assert facts["untouched"]


def test_all_differences_are_listed_at_once(megatron):
    changes = {"n_routed_experts": 16, "num_experts_per_tok": 3, "scoring_func": "sigmoid"}
    facts = megatron.run("registry.agreement", changes=changes, overrides={})
    assert len(facts["reasons"]) == 3


def test_routers_of_a_hybrid_model_replay_their_own_decoder_layers(megatron):
    # Routers stand at places 2, 6 and 8 of the pattern `*E*-*E*E`.
    assert megatron.run("registry.hybrid_replays") == {"2": [0], "6": [2], "8": [3]}


def test_a_hybrid_model_without_the_sampled_model_is_refused(megatron):
    facts = megatron.run("registry.hybrid_reasons", changes=None)
    assert any("'*E*-*E*E'" in reason for reason in facts["reasons"]), facts["reasons"]
    assert facts["untouched"]


def test_a_hybrid_model_with_other_moe_layers_is_refused(megatron):
    facts = megatron.run("registry.hybrid_reasons", changes={"mlp_only_layers": []})
    assert any("3 MoE layers (E), qwen3_next has 4" in reason for reason in facts["reasons"])
