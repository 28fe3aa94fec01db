"""The request of our own by which a canary looks at the routes of an engine.

It costs 40 tokens for each data-parallel rank, and is recorded by nobody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias

import numpy as np

from routereplay.patches.vllm.recorder import Recorder

State: TypeAlias = Literal["pending", "proven", "unproven", "failed"]

REASON = "canary_failed"
"""Why requests of a muted recorder are lost."""

TIMEOUT_S = 120.0

is_ours: ContextVar[bool] = ContextVar("routereplay_canary", default=False)
"""Whether a canary asks: its own request must not wait for its verdict."""

_PROMPT_TOKENS = 32
_NEW_TOKENS = 8


def prompt_of(vocab_size: int, max_model_len: int, attempt: int = 0) -> list[int]:
    """Return different token ids from the middle of the vocabulary: no special ones are there.

    Args:
        vocab_size: of the model.
        max_model_len: tokens that one request may have.
        attempt: another one gets other tokens, which no prefix cache holds from other weights.
    """
    count = max(min(_PROMPT_TOKENS, max_model_len - _NEW_TOKENS), 2)
    step = max(vocab_size // 2 // count, 1)
    first = vocab_size // 4 + attempt % step
    return [first + step * n for n in range(count)]


def sampling() -> Any:
    """Return vLLM's parameters of the request."""
    from vllm.sampling_params import SamplingParams

    # Hot, so that the tokens differ and their rows must.
    return SamplingParams(
        max_tokens=_NEW_TOKENS, temperature=2.0, ignore_eos=True, detokenize=False
    )


def announce(recorder: Recorder, rank: int, steps: list[np.ndarray]) -> str:
    """Return the id of a request to come, whose rows go into `steps` and nowhere else."""
    request_id = f"routereplay-canary-{recorder.engine_id}-{rank}"
    recorder.show_rows_of(request_id, steps)
    return request_id


async def ask_ranks(
    engine: Any, recorder: Recorder, prompt: Sequence[int]
) -> AsyncIterator[tuple[list[np.ndarray], Sequence[int]]]:
    """Yield the rows of each step and the completion, of every rank of an `AsyncLLM`."""
    ranks = len(engine.engine_core.engine_ranks_managed)
    for rank in range(ranks):
        steps: list[np.ndarray] = []
        request_id = announce(recorder, rank, steps)
        # A rank is named only where there is a choice.
        chosen = {"data_parallel_rank": rank} if ranks > 1 else {}
        completion: Sequence[int] = ()
        async for output in engine.generate(
            {"prompt_token_ids": prompt}, sampling(), request_id, **chosen
        ):
            completion = output.outputs[0].token_ids
        yield steps, completion
