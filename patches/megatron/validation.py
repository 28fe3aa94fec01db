"""What a model must be for its routers to replay: everything is checked before anything changes.

Read from Megatron-Core 0.16.1 to 0.19.2: `transformer/moe/router.py`,
`transformer/moe/moe_utils.py`, `transformer/transformer_config.py`. A field that a
version lacks counts as off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from routereplay.patches.megatron.discovery import Discovery, FoundChunk
from routereplay.patches.megatron.probe import probe_gradients, probe_router

MAX_EXPERTS = 2**15
"""uint16 ids travel as int16, because torch has few kernels for uint16."""


class ConfigRule(NamedTuple):
    """One thing about a `TransformerConfig` and what it does to replay."""

    applies: Callable[[Any], bool]
    text: str


def _get(config: Any, name: str, default: Any = None) -> Any:
    return getattr(config, name, default)


def _routing_types(config: Any) -> set[str]:
    kinds = _get(config, "moe_router_load_balancing_type", "none")
    return {kinds} if isinstance(kinds, str) else set(kinds or ())


def _recomputes_router(config: Any) -> bool:
    granularity = _get(config, "recompute_granularity")
    modules = _get(config, "recompute_modules") or ()
    return granularity == "full" or (granularity == "selective" and "moe" in modules)


_ROUTER_SCOPES = {"full", "full_iteration", "moe", "moe_router", "moe_preprocess"}


def _graphs_cover_router(config: Any) -> bool:
    if _get(config, "cuda_graph_impl", "none") == "none":
        return False
    # Renamed in 0.18. Empty means the whole layer.
    scope = _get(config, "cuda_graph_modules", None)
    if scope is None:
        scope = _get(config, "cuda_graph_scope", None)
    scopes = [scope] if isinstance(scope, str) else scope or ()
    names = {_get(item, "name", item) for item in scopes}
    return (
        _get(config, "cuda_graph_impl") == "full_iteration"
        or not names
        or bool(names & _ROUTER_SCOPES)
    )


def _has_aux_loss(config: Any) -> bool:
    coefficient = _get(config, "moe_aux_loss_coeff", 0.0)
    values = coefficient if isinstance(coefficient, (list, tuple)) else [coefficient]
    return _routing_types(config) != {"none"} and any(value and value > 0 for value in values)


REFUSALS: tuple[ConfigRule, ...] = (
    ConfigRule(
        lambda c: _get(c, "num_moe_experts") is None,
        "num_moe_experts is None: this is a dense model, it has no experts to replay",
    ),
    ConfigRule(
        lambda c: (_get(c, "num_moe_experts") or 0) > MAX_EXPERTS,
        f"num_moe_experts is over {MAX_EXPERTS}, the most that a replayed id can name",
    ),
    ConfigRule(
        lambda c: bool(_get(c, "moe_router_fusion")),
        "moe_router_fusion=True: the fused kernel never asks for replayed ids; set it to False",
    ),
    ConfigRule(
        lambda c: "sinkhorn" in _routing_types(c),
        "moe_router_load_balancing_type='sinkhorn' picks experts by itself; use 'none'",
    ),
    ConfigRule(
        lambda c: "quantile_balancing" in _routing_types(c),
        "moe_router_load_balancing_type='quantile_balancing' picks experts by itself; use 'none'",
    ),
    ConfigRule(
        lambda c: any(
            (
                _get(c, "moe_expert_capacity_factor") is not None,
                _get(c, "moe_expert_rank_capacity_factor") is not None,
                bool(_get(c, "moe_pad_expert_input_to_capacity")),
                bool(_get(c, "moe_token_dropping")),
            )
        ),
        "an expert capacity drops tokens that the rollout did not drop; unset "
        "moe_expert_capacity_factor, moe_expert_rank_capacity_factor, "
        "moe_pad_expert_input_to_capacity and moe_token_dropping",
    ),
    ConfigRule(
        lambda c: (
            bool(_get(c, "moe_router_force_load_balancing"))
            or _get(c, "moe_router_force_biased") is not None
        ),
        "moe_router_force_load_balancing / moe_router_force_biased replaces the router's logits "
        "by noise, so replayed experts would get random weights; unset it",
    ),
    ConfigRule(
        _graphs_cover_router,
        "CUDA graphs capture the router and would replay the ids of the capture for ever; use "
        "cuda_graph_impl='none' or leave moe, moe_router and moe_preprocess out of its scope",
    ),
    ConfigRule(
        lambda c: (_get(c, "mlp_chunks_for_training", 1) or 1) > 1,
        "mlp_chunks_for_training > 1 calls a router several times a microbatch; set it to 1",
    ),
    ConfigRule(
        lambda c: bool(_get(c, "overlap_moe_expert_parallel_comm")) and _recomputes_router(c),
        "overlap_moe_expert_parallel_comm with recompute of the router runs forward again "
        "outside of backward, where it cannot be told from a new microbatch; drop one of them",
    ),
)

WARNINGS: tuple[ConfigRule, ...] = (
    ConfigRule(
        _has_aux_loss,
        "moe_aux_loss_coeff > 0: the balance loss is about the router's live choice, not about "
        "the experts that are executed; set it to 0 or the balancing type to 'none' for RL",
    ),
    ConfigRule(
        lambda c: bool(_get(c, "moe_input_jitter_eps")),
        "moe_input_jitter_eps: the weights of the replayed experts are noisy; unset it",
    ),
)


BIAS_WARNING = ConfigRule(
    lambda c: (
        bool(_get(c, "moe_router_enable_expert_bias"))
        and bool(_get(c, "moe_router_bias_update_rate", 0.0))
    ),
    "moe_router_enable_expert_bias with an update rate: the bias will drift to balance the "
    "rollout's choice; set moe_router_bias_update_rate to 0 or freeze the bias",
)


def config_reasons(config: Any) -> list[str]:
    """Return what in `config` speaks against replay."""
    return [rule.text for rule in REFUSALS if rule.applies(config)]


def config_warnings(config: Any) -> list[str]:
    """Return what in `config` replays, but not as its owner may think."""
    return [rule.text for rule in WARNINGS if rule.applies(config)]


def validate(found: Discovery) -> tuple[list[str], list[str]]:
    """Return every reason to refuse the model and every warning, without duplicates."""
    reasons, warnings = list(found.reasons), []
    for chunk in found.chunks:
        refused = config_reasons(chunk.config)
        reasons += refused
        warnings += config_warnings(chunk.config)
        frozen = all(_get(found.router, "frozen_expert_bias", False) for found in chunk.routers)
        if not frozen and BIAS_WARNING.applies(chunk.config):
            warnings.append(BIAS_WARNING.text)
        # A refused configuration fails the probes too, and would only say it twice.
        if not refused:
            reasons += _probe(chunk)
    return list(dict.fromkeys(reasons)), list(dict.fromkeys(warnings))


def _probe(chunk: FoundChunk) -> list[str]:
    reasons = [reason for found in chunk.routers if (reason := probe_router(found))]
    if chunk.routers and not reasons and (reason := probe_gradients(chunk.config)):
        reasons.append(reason)
    return reasons
