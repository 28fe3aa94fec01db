"""`AsyncLLM`: what a trainer says to an engine whose weights it has changed."""

from __future__ import annotations

from typing import Any

from routereplay.patches._patch import Function, Patch
from routereplay.patches.vllm.attach import CANARY


def _note_change(original: Function) -> Function:
    async def command(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await original(self, *args, **kwargs)
        finally:
            # Also of one that failed half-way.
            canary = self.output_processor.__dict__.get(CANARY)
            if canary is not None:
                canary.weights_may_have_come()

    return command


def _patch(name: str, method: str, reason: str) -> Patch:
    return Patch(
        name=f"vllm.note-{name}",
        target=f"vllm.v1.engine.async_llm:AsyncLLM.{method}",
        uses=("self",),
        wrapper=_note_change,
        reason=f"{reason} The engine is judged after it.",
        remove_when="vLLM proves by itself that capture works.",
    )


NOTE_COMMAND = _patch(
    "command",
    "collective_rpc",
    "Weights are brought by a command to the workers, vLLM's own `update_weights` too.",
)
NOTE_WAKE_UP = _patch(
    "wake-up", "wake_up", "A trainer that shares the GPU brings weights while the engine sleeps."
)
NOTE_RESUME = _patch(
    "resume",
    "resume_generation",
    "A trainer that reaches the workers by a way of its own pauses the engine for it.",
)
