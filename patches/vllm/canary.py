"""One short generation, before anybody is served, proves that the engine's routes are real.

A signature cannot show that a kernel bypasses capture: rows of the right shape come, and
they are zero or stale. So the first thing that an engine generates is ours, and what came
with it is judged (`evidence`). It costs one request of 40 tokens for each data-parallel rank.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias

import numpy as np

from routereplay.patches.errors import PatchError
from routereplay.patches.vllm.evidence import doubts, routed_layers
from routereplay.patches.vllm.recorder import Recorder
from routereplay.patches.vllm.settings import CanaryMode

logger = logging.getLogger(__name__)

State: TypeAlias = Literal["pending", "proven", "unproven", "failed"]

REASON = "canary_failed"
"""Why requests of a muted recorder are lost."""

_PROMPT_TOKENS = 32
_NEW_TOKENS = 8
_TIMEOUT_S = 120.0

_is_canary: ContextVar[bool] = ContextVar("routereplay_canary", default=False)


class CanaryFailed(PatchError):
    """The engine's routes are not real."""

    code = "canary_failed"


class Canary:
    """Judges one engine, once.

    Args:
        recorder: of the engine's front end; shows the rows and hears the verdict.
        mode: what to do when the routes are not real.
        vocab_size: of the model.
        max_model_len: tokens that one request may have.
        publish: told every state.
    """

    def __init__(
        self,
        recorder: Recorder,
        mode: CanaryMode,
        *,
        vocab_size: int,
        max_model_len: int,
        publish: Callable[[State], None] = lambda state: None,
    ) -> None:
        self._recorder = recorder
        self._mode = mode
        self._publish = publish
        self._prompt = _prompt(vocab_size, max_model_len)
        self._task: asyncio.Task[None] | None = None
        self._problems: list[str] = []
        self.state: State = "pending"
        publish(self.state)

    async def before_serving(self, engine: Any) -> None:
        """Return once the routes of an `AsyncLLM` are judged; the first caller has it done.

        Raises:
            CanaryFailed: they are not real, and the mode is `refuse`.
        """
        if self.state == "pending" and not _is_canary.get():
            if self._task is None:
                if await engine.is_sleeping() or await engine.is_paused():
                    return
                self._task = asyncio.create_task(self._judge_async(engine))
            await asyncio.shield(self._task)
        self._raise_if_refused()

    def before_use(self, engine: Any) -> None:
        """Judge the routes of an offline `LLMEngine`.

        Raises:
            CanaryFailed: they are not real, and the mode is `refuse`.
        """
        steps: list[np.ndarray] = []
        try:
            self._weigh(steps, self._generate(engine, self._announce(0, steps)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it says nothing of the routes
            self._unproven(error)
        self._conclude()
        self._raise_if_refused()

    async def _judge_async(self, engine: Any) -> None:
        _is_canary.set(True)
        ranks = len(engine.engine_core.engine_ranks_managed)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                for rank in range(ranks):
                    steps: list[np.ndarray] = []
                    request_id = self._announce(rank, steps)
                    # A rank is named only where there is a choice.
                    chosen = {"data_parallel_rank": rank} if ranks > 1 else {}
                    outputs = engine.generate(
                        {"prompt_token_ids": self._prompt}, _sampling(), request_id, **chosen
                    )
                    self._weigh(steps, await _last_tokens(outputs))
        except Exception as error:  # noqa: BLE001 - whatever it is, it says nothing of the routes
            self._unproven(error)
        self._conclude()

    def _generate(self, engine: Any, request_id: str) -> Sequence[int]:
        engine.add_request(request_id, {"prompt_token_ids": self._prompt}, _sampling())
        completion: Sequence[int] = ()
        while engine.has_unfinished_requests():
            for output in engine.step():
                completion = output.outputs[0].token_ids
        return completion

    def _announce(self, rank: int, steps: list[np.ndarray]) -> str:
        request_id = f"routereplay-canary-{self._recorder.engine_id}-{rank}"
        self._recorder.show_rows_of(request_id, steps)
        return request_id

    def _weigh(self, steps: Sequence[np.ndarray], completion: Sequence[int]) -> None:
        model = self._recorder.model
        tokens = [*self._prompt, *completion]
        self._problems += doubts(steps, model, tokens, len(self._prompt))
        if not self._problems:
            self._recorder.proven(routed_layers(np.concatenate(steps)))

    def _unproven(self, error: Exception) -> None:
        self.state = "unproven"
        logger.warning(
            "route recorder: the canary generation did not end, so nothing proves that routes "
            "are real; they are recorded and watched: %s: %s",
            *(type(error).__name__, error),
        )

    def _conclude(self) -> None:
        if self._problems:
            self.state = "failed"
            logger.error("route recorder: %s", self._verdict())
            if self._mode == "mute":
                self._recorder.refuse(REASON)
        elif self.state == "pending":
            self.state = "proven"
            model = self._recorder.model
            dense = model.num_layers - len(model.moe_layers or ())
            logger.info(
                "route recorder: the canary saw real routes in %d layers; %d are dense",
                *(len(model.moe_layers or ()), dense),
            )
        self._publish(self.state)

    def _raise_if_refused(self) -> None:
        if self.state == "failed" and self._mode == "refuse":
            raise CanaryFailed(self._verdict(), problems=self._problems)

    def _verdict(self) -> str:
        return (
            "vLLM's routes are not real, a trainer would replay noise: "
            f"{'; '.join(self._problems)}. On a CPU start it with --enforce-eager; on a GPU try "
            "another --moe-backend or a newer vLLM. ROUTEREPLAY_CANARY=mute serves and records "
            "nothing, ROUTEREPLAY_ENABLED=0 runs vLLM without the recorder."
        )


def _prompt(vocab_size: int, max_model_len: int) -> list[int]:
    """Return different token ids from the middle of the vocabulary: no special ones are there."""
    count = max(min(_PROMPT_TOKENS, max_model_len - _NEW_TOKENS), 2)
    first = vocab_size // 4
    step = max(vocab_size // 2 // count, 1)
    return [first + step * n for n in range(count)]


def _sampling() -> Any:
    from vllm.sampling_params import SamplingParams

    # Hot, so that the tokens differ and their rows must.
    return SamplingParams(
        max_tokens=_NEW_TOKENS, temperature=2.0, ignore_eos=True, detokenize=False
    )


async def _last_tokens(outputs: AsyncIterator[Any]) -> Sequence[int]:
    completion: Sequence[int] = ()
    async for output in outputs:
        completion = output.outputs[0].token_ids
    return completion
