"""Replay finds the live decoder routers inside whatever a trainer wraps around them."""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.slow]


def test_a_model_inside_ddp_and_float16_module_replays(megatron):
    assert megatron.run("wrapping.wrapped_model") == {"layers": [2, 3, 4], "equal": True}


def test_routers_of_multi_token_prediction_are_left_alone(megatron):
    facts = megatron.run("wrapping.multi_token_prediction")
    assert facts == {"layers": [2, 3, 4], "outside_is_untouched": True}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.01}, "aux_loss"),
        ({"moe_input_jitter_eps": 0.1}, "jitter"),
        (
            {"moe_router_enable_expert_bias": True, "moe_router_score_function": "sigmoid"},
            "expert_bias",
        ),
    ],
    ids=["aux-loss", "jitter", "expert-bias"],
)
def test_what_replays_otherwise_than_one_may_think_is_logged_once(megatron, config, words):
    (message,) = megatron.run("wrapping.warnings_of", config=config)
    assert words in message


def test_a_plain_model_logs_no_warning(megatron):
    assert megatron.run("wrapping.warnings_of", config={}) == []
