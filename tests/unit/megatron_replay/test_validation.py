"""Each thing that speaks against replay, from the configuration alone."""

from enum import Enum
from types import SimpleNamespace

import pytest

pytest.importorskip("megatron.core")

from routereplay.patches.megatron.validation import config_reasons, config_warnings

pytestmark = pytest.mark.megatron

Scope = Enum("Scope", ["full_iteration", "attn", "mlp", "moe", "moe_router", "moe_preprocess"])


def config(**fields):
    plain = {"num_moe_experts": 8, "moe_router_load_balancing_type": "none"}
    return SimpleNamespace(**(plain | fields))


REFUSED = [
    ({"num_moe_experts": None}, "num_moe_experts is None"),
    ({"num_moe_experts": 2**15 + 1}, "num_moe_experts is over"),
    ({"moe_router_fusion": True}, "moe_router_fusion"),
    ({"moe_router_load_balancing_type": "sinkhorn"}, "sinkhorn"),
    ({"moe_router_load_balancing_type": "quantile_balancing"}, "quantile_balancing"),
    ({"moe_router_load_balancing_type": ["aux_loss", "sinkhorn"]}, "sinkhorn"),
    ({"moe_expert_capacity_factor": 1.0}, "capacity"),
    ({"moe_expert_rank_capacity_factor": 1.0}, "capacity"),
    ({"moe_pad_expert_input_to_capacity": True}, "capacity"),
    ({"moe_token_dropping": True}, "capacity"),
    ({"moe_router_force_load_balancing": True}, "moe_router_force_load_balancing"),
    ({"moe_router_force_biased": 0.0}, "moe_router_force_biased"),
    ({"cuda_graph_impl": "local", "cuda_graph_scope": []}, "CUDA graphs"),
    ({"cuda_graph_impl": "local"}, "CUDA graphs"),
    ({"cuda_graph_impl": "local", "cuda_graph_scope": [Scope.full_iteration]}, "CUDA graphs"),
    ({"cuda_graph_impl": "local", "cuda_graph_scope": [Scope.attn, Scope.moe]}, "CUDA graphs"),
    ({"cuda_graph_impl": "local", "cuda_graph_modules": [Scope.moe_router]}, "CUDA graphs"),
    ({"cuda_graph_impl": "local", "cuda_graph_modules": "full"}, "CUDA graphs"),
    ({"cuda_graph_impl": "full_iteration", "cuda_graph_modules": []}, "CUDA graphs"),
    ({"mlp_chunks_for_training": 2}, "mlp_chunks_for_training"),
    (
        {"overlap_moe_expert_parallel_comm": True, "recompute_granularity": "full"},
        "overlap_moe_expert_parallel_comm",
    ),
    (
        {
            "overlap_moe_expert_parallel_comm": True,
            "recompute_granularity": "selective",
            "recompute_modules": ["moe"],
        },
        "overlap_moe_expert_parallel_comm",
    ),
]

ALLOWED = [
    {},
    {"cuda_graph_impl": "none", "cuda_graph_scope": []},
    {"cuda_graph_impl": "local", "cuda_graph_scope": [Scope.attn, Scope.mlp]},
    {"cuda_graph_impl": "transformer_engine", "cuda_graph_modules": [Scope.attn]},
    {"overlap_moe_expert_parallel_comm": True},
    {
        "overlap_moe_expert_parallel_comm": True,
        "recompute_granularity": "selective",
        "recompute_modules": ["core_attn"],
    },
    {"num_moe_experts": 2**15},
    {"moe_router_padding_for_quantization": True},
]

WARNED = [
    ({"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.01}, "aux_loss"),
    (
        {"moe_router_load_balancing_type": ["aux_loss"], "moe_aux_loss_coeff": [0.0, 0.1]},
        "aux_loss",
    ),
    ({"moe_input_jitter_eps": 0.1}, "jitter"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED, ids=[str(fields) for fields, _ in REFUSED])
def test_what_would_not_replay_is_refused(fields, words):
    (reason,) = config_reasons(config(**fields))
    assert words in reason


@pytest.mark.parametrize("fields", ALLOWED, ids=str)
def test_what_replays_is_allowed(fields):
    assert config_reasons(config(**fields)) == []


def test_every_reason_is_given_at_once():
    reasons = config_reasons(config(moe_router_fusion=True, mlp_chunks_for_training=2))
    assert len(reasons) == 2


@pytest.mark.parametrize(("fields", "words"), WARNED, ids=[str(fields) for fields, _ in WARNED])
def test_what_replays_otherwise_than_one_may_think_is_warned_of(fields, words):
    (warning,) = config_warnings(config(**fields))
    assert words in warning


def test_an_aux_loss_of_coefficient_zero_is_no_warning():
    fields = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.0}
    assert config_warnings(config(**fields)) == []
