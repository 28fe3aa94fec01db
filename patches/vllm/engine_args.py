"""`EngineArgs.create_model_config`: a mixture of experts captures its routes by itself."""

from __future__ import annotations

import logging
from typing import Any

from routereplay.patches._patch import Function, Patch
from routereplay.patches.vllm.refusals import check_engine
from routereplay.patches.vllm.releases import AUX_OUTPUT, installed_release

logger = logging.getLogger(__name__)


def capture_section(owner: Any, model_config: Any = None) -> Any:
    """Return what carries `enable_return_routed_experts` in this release.

    Args:
        owner: `EngineArgs` or `VllmConfig`.
        model_config: the model's; `owner.model_config` unless given.
    """
    if installed_release().has(AUX_OUTPUT):
        return owner.aux_output_config
    return owner.model_config if model_config is None else model_config


def _capture_routes(original: Function) -> Function:
    def create_model_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        model_config = original(self, *args, **kwargs)
        if model_config.is_moe and model_config.runner_type == "generate":
            check_engine(self, installed_release())
            section = capture_section(self, model_config)
            if not section.enable_return_routed_experts:
                section.enable_return_routed_experts = True
                logger.info(
                    "route recorder: enable_return_routed_experts is on for %s "
                    "(ROUTEREPLAY_ENABLED=0 leaves vLLM as it is)",
                    model_config.model,
                )
        return model_config

    return create_model_config


CAPTURE_ROUTES = Patch(
    name="vllm.capture-routes",
    target="vllm.engine.arg_utils:EngineArgs.create_model_config",
    uses=("self",),
    wrapper=_capture_routes,
    reason=(
        "Only here is it known whether the model is a mixture of experts, and not yet "
        "checked whether the rest of the configuration allows capture; a dense model that "
        "is started with the flag fails."
    ),
    remove_when="vLLM accepts --enable-return-routed-experts for every model.",
)
