"""Other recomputes, shared experts, and top-k only where a row is live."""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.slow]


@pytest.mark.parametrize(
    ("modules", "recomputes"),
    [
        ([], 0),
        (["core_attn"], 0),
        (["mlp"], 0),
        (["shared_experts"], 0),
        (["core_attn", "mlp", "moe", "shared_experts"], 3),
    ],
    ids=lambda value: "+".join(value) or "none" if isinstance(value, list) else None,
)
def test_modules_that_are_recomputed_replay_bit_for_bit(megatron, modules, recomputes):
    # "layernorm" and "moe_act" need Transformer Engine; neither runs the router again.
    assert megatron.run("variants.recomputed_modules", modules=modules) == {
        "loss_equal": True,
        "gradient_difference": 0.0,
        "shared_trained": 6,
        "router_calls": 3,
        "recomputes": recomputes,
    }


def test_a_router_runs_its_own_top_k_only_where_a_row_is_live(megatron):
    # Of live rows the first choice is kept for recompute; the canary looks at each layer in
    # the first step (and then at one a step: test_watching.py).
    assert megatron.run("variants.topk_of_a_microbatch") == {
        "live": 6,
        "replayed": 0,
        "one row live": 3,
        "compared": 3,
    }


def test_a_replayed_call_widens_and_gathers_and_a_compared_one_stays_small(megatron):
    found = megatron.run("variants.operations_of_router_calls")
    # Three routers, forward and recompute.
    assert found["replayed"] == [2] * 6
    assert found["compared"][1:] == [2] * 5
    assert found["compared"][0] <= 30
