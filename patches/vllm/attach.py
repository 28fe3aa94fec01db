"""Give an engine front end its recorder."""

from __future__ import annotations

import functools
import logging
import os
from multiprocessing.util import Finalize
from typing import Any

from routereplay.patches.vllm.canary import Canary
from routereplay.patches.vllm.engine_args import capture_section
from routereplay.patches.vllm.engine_tap import EngineTap
from routereplay.patches.vllm.exporter import Exporter
from routereplay.patches.vllm.late_canary import LateCanary
from routereplay.patches.vllm.metrics import Metrics, serve_metrics
from routereplay.patches.vllm.record import ModelFacts
from routereplay.patches.vllm.recorder import Recorder
from routereplay.patches.vllm.refusals import check_output_processor
from routereplay.patches.vllm.releases import PROMPT_START_AT_END, TOPK_OF_CONFIG, installed_release
from routereplay.patches.vllm.settings import Settings

logger = logging.getLogger(__name__)

RECORDER = "_routereplay_recorder"
"""Attribute of an `OutputProcessor` that is recorded."""


CANARY = "_routereplay_canary"
"""Attribute of an `OutputProcessor` whose engine's routes are to be proven."""


@functools.cache
def process_settings() -> Settings:
    """Return the settings of this process."""
    return Settings.from_env(os.environ)


@functools.cache
def process_metrics() -> Metrics:
    """Return the metrics of this process: prometheus_client knows each name once."""
    return Metrics()


@functools.cache
def process_exporter() -> Exporter:
    """Return the exporter of this process; one for all engines, as metrics are."""
    exporter = Exporter(process_settings(), process_metrics().publish)
    # atexit alone would miss API servers that multiprocessing started.
    Finalize(None, exporter.close, exitpriority=100)
    return exporter


def model_facts(vllm_config: Any) -> ModelFacts | None:
    """Return the sizes of the model's routes, or None if this engine captures none."""
    model = vllm_config.model_config
    if not capture_is_on(vllm_config):
        if model.is_moe and model.runner_type == "generate":
            logger.error(
                "route recorder: %s is a mixture of experts and its engine was configured without "
                "enable_return_routed_experts: nothing is recorded. Build the configuration with "
                "EngineArgs, or set the flag.",
                model.model,
            )
        return None
    served = model.served_model_name
    return ModelFacts(
        name=served if isinstance(served, str) else (served or [model.model])[0],
        num_layers=model.get_total_num_hidden_layers(),
        topk=_topk(model),
        num_experts=model.get_num_experts(),
    )


def capture_is_on(vllm_config: Any) -> bool:
    """Whether the engine captures routes."""
    return bool(capture_section(vllm_config).enable_return_routed_experts)


def _topk(model_config: Any) -> int:
    if installed_release().has(TOPK_OF_CONFIG):
        return int(model_config.get_num_experts_per_tok())
    # The two names that vLLM's own capture looks for in these releases.
    text_config = model_config.hf_text_config
    topk = getattr(text_config, "num_experts_per_tok", None)
    return int(text_config.top_k_experts if topk is None else topk)


def attach(
    output_processor: Any, facts: ModelFacts, vllm_config: Any, *, keep_native: bool
) -> Canary | None:
    """Make `output_processor` record; returns what judges its engine now, if anything does."""
    check_output_processor(output_processor)
    recorder = _recorder(facts, keep_native=keep_native)
    setattr(output_processor, RECORDER, recorder)
    if process_settings().canary == "off":
        return None
    if _has_placeholders(vllm_config):
        vocab_size, max_model_len = _sizes(vllm_config)
        late = LateCanary(
            recorder,
            publish=process_metrics().canary,
            vocab_size=vocab_size,
            max_model_len=max_model_len,
        )
        setattr(output_processor, CANARY, late)
        return None
    canary = _canary(recorder, vllm_config)
    setattr(output_processor, CANARY, canary)
    return canary


def attach_engine(facts: ModelFacts, vllm_config: Any) -> EngineTap:
    """Return what records an engine whose front end is not Python."""
    recorder = _recorder(facts, keep_native=False, in_engine=True)
    if port := process_settings().metrics_port:
        serve_metrics(port + (vllm_config.parallel_config.data_parallel_index or 0))
    if process_settings().canary == "off":
        return EngineTap(recorder, None)
    if _has_placeholders(vllm_config):
        process_metrics().canary("unproven")
        return EngineTap(recorder, None)
    return EngineTap(recorder, _canary(recorder, vllm_config))


def _recorder(facts: ModelFacts, *, keep_native: bool, in_engine: bool = False) -> Recorder:
    exporter = process_exporter()
    recorder = Recorder(
        facts,
        exporter,
        keep_native=keep_native,
        only_new_rows=exporter.only_new_rows,
        may_leave_out_all=installed_release().has(PROMPT_START_AT_END),
        in_engine=in_engine,
    )
    logger.info(
        "route recorder %s: %s, %d layers, top-%d of %d experts, %d bytes a token, to %s",
        *(recorder.engine_id, facts.name, facts.num_layers, facts.topk),
        *(facts.num_experts, facts.row_nbytes, exporter.store_name),
    )
    return recorder


def _has_placeholders(vllm_config: Any) -> bool:
    """Whether a trainer is to send the weights: all layers hold the same numbers until then."""
    if vllm_config.load_config.load_format != "dummy":
        return False
    logger.warning(
        "route recorder: the weights are placeholders (--load-format dummy) until a trainer "
        "sends its own, so nothing proves that routes are real; they are recorded and watched, "
        "and the canary looks at them when weights have come, if a Python front end serves"
    )
    return True


def _sizes(vllm_config: Any) -> tuple[int, int]:
    """Return how many tokens the model knows, and how many a request may have."""
    model_config = vllm_config.model_config
    return model_config.get_vocab_size(), model_config.max_model_len


def _canary(recorder: Recorder, vllm_config: Any) -> Canary:
    vocab_size, max_model_len = _sizes(vllm_config)
    return Canary(
        recorder,
        process_settings().canary,
        publish=process_metrics().canary,
        vocab_size=vocab_size,
        max_model_len=max_model_len,
    )
