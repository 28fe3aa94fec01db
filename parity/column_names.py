"""What the columns of the table are called, and which of them is which."""

from __future__ import annotations

ENGINE_AGAIN = "vLLM again"
MEGATRON_AGAIN = "Megatron again"
REPLAY_OFF = "replay off"
REPLAY_ON = "replay on"
DENSE_SCORES = "Megatron"
"""Of a model that routes nothing: there is no replay to turn on."""
KINDS = (ENGINE_AGAIN, REPLAY_OFF, REPLAY_ON, MEGATRON_AGAIN, DENSE_SCORES)


def kind_of(column: str) -> str:
    """Return which of `KINDS` a column is; a later topology's has its name behind that."""
    return next(kind for kind in KINDS if column == kind or column.startswith(f"{kind} "))
