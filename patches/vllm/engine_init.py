"""`AsyncLLM` and `LLMEngine`: the engine's front end gets its recorder, and is shut down."""

from __future__ import annotations

from typing import Any

from routereplay.patches._patch import Function, Patch
from routereplay.patches.vllm.attach import RECORDER, attach, model_facts


def _attach_after(original: Function, *, keep_native: bool) -> Function:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        # Before the engine starts: what is wrong with the model is said at once.
        facts = model_facts(vllm_config)
        original(self, vllm_config, *args, **kwargs)
        if facts is not None:
            attach(self.output_processor, facts, keep_native=keep_native)

    return __init__


def _attach_server(original: Function) -> Function:
    return _attach_after(original, keep_native=False)


def _attach_offline(original: Function) -> Function:
    # The caller of offline LLM.generate holds the arrays in his own process: there is no
    # response to relieve, and `outputs[0].routed_experts` stays where his code looks for it.
    return _attach_after(original, keep_native=True)


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
