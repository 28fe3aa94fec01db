"""Parity tools: the converted model is the checkpoint's model, and scores as it does."""

import pytest

from routereplay.parity.hf_families import FAMILIES as FAMILY_TABLE

pytestmark = [pytest.mark.megatron, pytest.mark.slow]


@pytest.mark.parametrize(
    "fields",
    [{}, {"dense_layers": (), "num_layers": 2}, {"num_experts": 8, "topk": 2, "seed": 3}],
    ids=["one-dense-layer", "all-moe", "8-experts"],
)
def test_logits_and_router_choices_equal_those_of_transformers(megatron, fields):
    facts = megatron.run("conversion.against_transformers", fields=fields)
    assert facts["logit_difference"] < 1e-4
    assert facts["moe_layers"] == fields.get("num_layers", 4) - len(fields.get("dense_layers", [0]))
    assert facts["routes_equal"]


FAMILIES = [
    *[(name, "") for name in FAMILY_TABLE],
    ("qwen3_5_moe_text", "fused"),
    ("qwen3_5_moe_text", "multimodal"),
]


@pytest.mark.parametrize(
    ("family", "form"), FAMILIES, ids=[f"{name}{form and '-'}{form}" for name, form in FAMILIES]
)
def test_each_family_gives_the_logits_of_transformers(megatron, family, form):
    facts = megatron.run("conversion.family_against_transformers", model_type=family, form=form)
    assert facts["logit_difference"] < 2e-4, "of logits that reach 13"
    assert facts["moe_layers"] == (3 if "moe" in family or family == "mixtral" else 0)
    assert facts["other_choices"] == 0


def test_packed_sequences_score_as_each_does_alone(megatron):
    facts = megatron.run("conversion.packed_scores")
    assert facts["positions"] == [*range(1, 15), *range(16, 40)]
    assert facts["difference"] < 1e-5
    assert facts["top_equal"]


def test_the_policy_gradient_pass_scores_the_same_and_reaches_every_parameter(megatron):
    facts = megatron.run("conversion.packed_scores")
    assert facts["trained_difference"] < 1e-5
    assert facts["loss_difference"] < 1e-5
    assert facts["without_gradient"] == []


def test_bfloat16_scores_are_near_and_not_equal(megatron):
    facts = megatron.run("conversion.bfloat16_scores")
    assert 0 < facts["difference"] < 0.1


def test_a_packed_row_that_replays_its_own_routes_scores_the_same(megatron):
    # The recorded sets are in the order of the ids, so gate weights sum in another order.
    assert megatron.run("conversion.replay_of_a_packed_row")["difference"] < 1e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", "the checkpoint lacks model.layers.2.mlp.experts.3.up_proj.weight"),
        ("unused", "the checkpoint's model.layers.1.mlp.shared_expert.weight is unused"),
        ("shape", "would be (65,)"),
        ("architecture", "model_type='gemma3_text'"),
        ("rope", "rope_type='yarn'"),
        ("absent", "holds neither model.safetensors"),
    ],
)
def test_a_checkpoint_that_cannot_be_converted_whole_is_refused(megatron, change, words):
    message = megatron.run("conversion.broken_checkpoint", change=change)
    assert message is not None
    assert words in message


def test_an_unchanged_checkpoint_is_not_refused(megatron):
    assert megatron.run("conversion.broken_checkpoint", change=None) is None


def test_the_shim_puts_back_what_it_replaced(megatron):
    assert megatron.run("conversion.shim_puts_everything_back")["restored"]
