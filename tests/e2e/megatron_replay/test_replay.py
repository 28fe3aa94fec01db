"""Replay on the real Megatron-Core: losses and every gradient, with and without recompute."""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.slow]

RECOMPUTES = [None, "full", "moe"]
CALLS = {None: 1, "full": 2, "moe": 2}


@pytest.mark.parametrize("recompute", RECOMPUTES)
def test_replay_of_its_own_routes_is_the_live_run_bit_for_bit(megatron, recompute):
    facts = megatron.run("scenarios.replay_of_own_routes", recompute=recompute)
    assert facts["loss_equal"]
    assert facts["gradient_difference"] == 0.0
    assert facts["parameters"] > 50
    assert all(gradient > 0 for gradient in facts["router_gradients"])
    assert facts["report"].pop("canary")[0]["overlap"] == 1.0
    assert facts["report"] == {
        "microbatches": 1,
        "router_calls": 3,
        "recomputes": 0 if recompute is None else 3,
        "rows": [24, 0, 0],
        "origins": {"recorded": 24, "live": 0, "missing": 0, "policy_versions": {}},
        "prefetched": 0,
    }


@pytest.mark.parametrize("recompute", RECOMPUTES)
def test_every_row_executes_the_recorded_experts_in_forward_and_recompute(megatron, recompute):
    facts = megatron.run("scenarios.replay_of_foreign_routes", recompute=recompute)
    assert not facts["live_equal"]
    assert facts["replay_equal"]
    assert facts["calls"] == [CALLS[recompute]] * 3
    assert all(gradient > 0 for gradient in facts["router_gradients"])


@pytest.mark.parametrize("recompute", RECOMPUTES)
def test_mixed_replay_with_recorded_rows_of_a_live_run_is_that_run(megatron, recompute):
    facts = megatron.run("scenarios.mixed_replay", recompute=recompute)
    assert facts == {"loss_equal": True, "gradient_difference": 0.0}


def test_live_rows_choose_for_themselves_and_recompute_repeats_their_choice(megatron):
    facts = megatron.run("scenarios.mixed_replay_of_foreign_routes")
    assert facts == {
        "recorded_rows_equal": True,
        "live_rows_equal": False,
        "recompute_repeats": True,
    }


def test_padding_rows_execute_the_experts_they_were_given(megatron):
    assert megatron.run("scenarios.padding_rows")["padding_equal"]


def test_microbatches_in_flight_recompute_with_their_own_routes(megatron):
    facts = megatron.run("scenarios.two_in_flight", mutate=False)
    assert facts == {"losses_equal": True, "gradient_difference": 0.0}


def test_the_order_of_a_tokens_experts_is_not_needed(megatron):
    facts = megatron.run("scenarios.replay_of_sorted_routes")
    assert facts["rows_moved"] > 10
    assert facts["loss_difference"] < 1e-6
    assert facts["gradient_difference"] < 1e-5


def test_stale_routes_at_recompute_show_in_gradients_and_not_in_losses(megatron):
    facts = megatron.run("scenarios.two_in_flight", mutate=True)
    assert facts["losses_equal"]
    assert facts["gradient_difference"] > 0.1


@pytest.mark.parametrize("recompute", RECOMPUTES)
def test_the_schedule_replays_its_microbatches_in_order(megatron, recompute):
    facts = megatron.run("scenarios.schedule_of_microbatches", recompute=recompute)
    assert facts["losses_equal"]
    assert facts["gradient_difference"] < 1e-5
    assert facts["report"]["microbatches"] == 3


def test_rows_that_skip_the_transpose_train_otherwise(megatron):
    facts = megatron.run("scenarios.rows_in_another_order")
    assert facts["losses_differ"]
    assert facts["gradient_difference"] > 0.1


def test_bypass_routes_live_inside_and_outside_of_a_step(megatron):
    facts = megatron.run("lifecycle.bypass_routes_live")
    assert facts == {"loss_equal": True, "gradient_difference": 0.0, "replayed_differs": True}


@pytest.mark.parametrize("no_grad_around", ["model", "forward_step"])
def test_a_forward_only_step_under_no_grad_is_whole(megatron, no_grad_around):
    assert megatron.run("lifecycle.forward_only", no_grad_around=no_grad_around)["loss_equal"]


@pytest.mark.parametrize("native", [False, True])
def test_disable_puts_back_exactly_what_was_there(megatron, native):
    facts = megatron.run("lifecycle.disable_restores", native=native)
    assert facts["native"] == [native] * 3
    assert facts["replaced"]
    assert facts["restored"]
    assert facts["hooks"] == 0
    assert facts["loss_equal"]
    assert facts["gradient_difference"] == 0.0


def test_replay_adds_nothing_to_the_state_dict(megatron):
    assert megatron.run("lifecycle.state_dict_is_unchanged")["equal"]


def test_an_aborted_step_leaves_nothing_to_the_next(megatron):
    facts = megatron.run("lifecycle.abort_then_train")
    assert facts == {"loss_equal": True, "gradient_difference": 0.0}


def test_more_than_256_experts_replay_from_uint16(megatron):
    assert megatron.run("scenarios.wide_expert_ids")["equal"]


def test_routes_that_begin_at_a_later_layer_replay_the_same(megatron):
    facts = megatron.run("scenarios.slice_of_layers")
    assert facts == {"loss_equal": True, "gradient_difference": 0.0}


def test_a_layer_map_says_which_recorded_layer_is_whose(megatron):
    facts = megatron.run("scenarios.mapped_layers")
    assert facts == {"loss_equal": True, "gradient_difference": 0.0}


@pytest.mark.parametrize(
    "config",
    [
        {"moe_router_pre_softmax": True},
        {"moe_router_score_function": "sigmoid"},
        {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True},
        {"moe_router_num_groups": 4, "moe_router_group_topk": 2},
        {"moe_router_topk_scaling_factor": 2.5},
        {"moe_router_dtype": "fp32"},
    ],
    ids=lambda config: "+".join(key.removeprefix("moe_router_") for key in config),
)
def test_other_scores_and_groupings_replay_too(megatron, config):
    facts = megatron.run("scenarios.replays_with", config=config)
    assert facts["equal"]
    assert all(gradient > 0 for gradient in facts["router_gradients"])
