"""One short generation, before anybody is served, proves that the engine's routes are real.

A signature cannot show that a kernel bypasses capture: rows of the right shape come, and
they are zero or stale. So the first thing that an engine generates is ours, and what came
with it is judged (`evidence`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from routereplay.patches.errors import PatchError
from routereplay.patches.vllm.canary_request import (
    REASON,
    TIMEOUT_S,
    State,
    announce,
    ask_ranks,
    is_ours,
    prompt_of,
    sampling,
)
from routereplay.patches.vllm.core_generation import generate_in_core
from routereplay.patches.vllm.evidence import doubts, routed_layers
from routereplay.patches.vllm.late_canary import LateCanary
from routereplay.patches.vllm.recorder import Recorder
from routereplay.patches.vllm.settings import CanaryMode

logger = logging.getLogger(__name__)


class CanaryFailed(PatchError):
    """The engine's routes are not real."""

    code = "canary_failed"


class Canary:
    """Judges one engine before it serves; a `LateCanary` does after each change of weights.

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
        self._prompt = prompt_of(vocab_size, max_model_len)
        self._later = LateCanary(
            recorder,
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            publish=publish,
            proven=True,
        )
        self._task: asyncio.Task[None] | None = None
        self._problems: list[str] = []
        self.state: State = "pending"
        publish(self.state)

    async def before_serving(self, engine: Any) -> None:
        """Return once the routes of an `AsyncLLM` are judged; the first caller has it done.

        Raises:
            CanaryFailed: they are not real, and the mode is `refuse`.
        """
        if self.state == "pending" and not is_ours.get():
            if self._task is None:
                if await engine.is_sleeping() or await engine.is_paused():
                    return
                self._task = asyncio.create_task(self._judge_async(engine))
            await asyncio.shield(self._task)
        self._raise_if_refused()
        if self.state == "proven":
            await self._later.before_serving(engine)

    def weights_may_have_come(self) -> None:
        """The engine was told something after which its weights can be others."""
        if self.state == "proven":
            self._later.weights_may_have_come()

    def before_use(self, engine: Any) -> None:
        """Judge the routes of an offline `LLMEngine`.

        Raises:
            CanaryFailed: they are not real, and the mode is `refuse`.
        """
        steps: list[np.ndarray] = []
        try:
            self._weigh(steps, self._generate(engine, announce(self._recorder, 0, steps)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it says nothing of the routes
            self._unproven(error)
        self._conclude()
        self._raise_if_refused()

    def before_loop(self, core: Any) -> None:
        """Judge the routes of an `EngineCore` that has no front end yet.

        Raises:
            CanaryFailed: they are not real, and the mode is `refuse`.
        """
        steps: list[np.ndarray] = []
        try:
            request_id = announce(self._recorder, 0, steps)
            self._weigh(steps, generate_in_core(core, request_id, self._prompt, sampling()))
        except Exception as error:  # noqa: BLE001 - whatever it is, it says nothing of the routes
            self._unproven(error)
        self._conclude()
        self._raise_if_refused()

    async def _judge_async(self, engine: Any) -> None:
        is_ours.set(True)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                async for steps, completion in ask_ranks(engine, self._recorder, self._prompt):
                    self._weigh(steps, completion)
        except Exception as error:  # noqa: BLE001 - whatever it is, it says nothing of the routes
            self._unproven(error)
        self._conclude()

    def _generate(self, engine: Any, request_id: str) -> Sequence[int]:
        engine.add_request(request_id, {"prompt_token_ids": self._prompt}, sampling())
        completion: Sequence[int] = ()
        while engine.has_unfinished_requests():
            for output in engine.step():
                completion = output.outputs[0].token_ids
        return completion

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
