"""`AsyncLLM` and `LLMEngine`: the engine's front end gets its recorder, and is shut down."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from routereplay.patches._patch import Function, Patch
from routereplay.patches.vllm.attach import CANARY, RECORDER, attach, model_facts
from routereplay.patches.vllm.record import ModelFacts
from routereplay.patches.vllm.refusals import check_output_processor_class

logger = logging.getLogger(__name__)


def _attach_server(original: Function) -> Function:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        # Before the engine starts: what is wrong with the model is said at once.
        facts = model_facts(vllm_config)
        with _starting(facts, original):
            original(self, vllm_config, *args, **kwargs)
        if facts is not None:
            attach(self.output_processor, facts, vllm_config, keep_native=False)

    return __init__


def _attach_offline(original: Function) -> Function:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        facts = model_facts(vllm_config)
        with _starting(facts, original):
            original(self, vllm_config, *args, **kwargs)
        if facts is not None:
            # The caller of offline LLM.generate holds the arrays in his own process: there is
            # no response to relieve, and they stay where his code looks for them.
            canary = attach(self.output_processor, facts, vllm_config, keep_native=True)
            if canary is not None:
                canary.before_use(self)

    return __init__


@contextlib.contextmanager
def _starting(facts: ModelFacts | None, init: Function) -> Iterator[None]:
    """Look at what will take the rows before a model is loaded; say more if the engine fails."""
    if facts is None:
        yield
        return
    kind = getattr(sys.modules.get(init.__module__), "OutputProcessor", None)
    if kind is not None:
        check_output_processor_class(kind)
    try:
        yield
    except Exception:
        # vLLM's own error names a flag or a kernel that nobody has asked for.
        logger.error(
            "route recorder: the engine of %s did not start. The recorder has switched "
            "enable_return_routed_experts on: if vLLM's own error speaks of routed experts, their "
            "capture does not know a kernel or a router of this model. Try another "
            "--moe-backend or a newer vLLM; ROUTEREPLAY_ENABLED=0 runs it without recording.",
            facts.name,
        )
        raise


def _prove_first(original: Function) -> Function:
    async def get_supported_tasks(self: Any, *args: Any, **kwargs: Any) -> Any:
        canary = self.output_processor.__dict__.get(CANARY)
        if canary is not None:
            await canary.before_serving(self)
        return await original(self, *args, **kwargs)

    return get_supported_tasks


def _note_shutdown(original: Function) -> Function:
    def shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Called by __del__ too, and then perhaps of an object that was never finished.
        processor = getattr(self, "output_processor", None)
        recorder = getattr(processor, RECORDER, None)
        if recorder is not None:
            recorder.engine_stopped()
        return original(self, *args, **kwargs)

    return shutdown


_REASON = (
    "The output processor knows requests and rows but not the model; the recorder needs "
    "layers, top-k, experts and the served name."
)
_REMOVE_WHEN = "vLLM has an official per-step sink for routed experts (none in 0.33)."

ATTACH_ASYNC = Patch(
    name="vllm.attach-async",
    target="vllm.v1.engine.async_llm:AsyncLLM.__init__",
    uses=("self", "vllm_config"),
    wrapper=_attach_server,
    reason=_REASON,
    remove_when=_REMOVE_WHEN,
)

ATTACH_OFFLINE = Patch(
    name="vllm.attach-offline",
    target="vllm.v1.engine.llm_engine:LLMEngine.__init__",
    uses=("self", "vllm_config"),
    wrapper=_attach_offline,
    reason=_REASON,
    remove_when=_REMOVE_WHEN,
)

PROVE_FIRST = Patch(
    name="vllm.prove-first",
    target="vllm.v1.engine.async_llm:AsyncLLM.get_supported_tasks",
    uses=("self",),
    wrapper=_prove_first,
    reason=(
        "Awaited by the server before it is ready and by each request before it is admitted, "
        "in every release: the canary generates before anybody is served."
    ),
    remove_when="vLLM proves at start that capture works.",
)

NOTE_SHUTDOWN = Patch(
    name="vllm.note-shutdown",
    target="vllm.v1.engine.async_llm:AsyncLLM.shutdown",
    uses=("self",),
    wrapper=_note_shutdown,
    reason=(
        "The last word of a server that is told to stop: after it vLLM waits for open "
        "connections or is killed, and requests in progress would end without a trace."
    ),
    remove_when="vLLM aborts requests in progress through its output processor at shutdown.",
)
