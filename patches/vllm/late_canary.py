"""The canary of an engine that starts with placeholders (`--load-format dummy`).

All layers of such an engine hold the same numbers and choose the same experts, so that nothing
can be judged at the start. A trainer brings the weights later, in a way that the front end may
see (a command to the workers, waking up, going on after a pause) or not. So the engine is asked
before the first request after each of these, and before one a minute; never on its own account:
between requests a trainer may take the engine's memory away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from routereplay.patches.vllm.canary import REASON, State
from routereplay.patches.vllm.canary_request import TIMEOUT_S, ask_ranks, is_ours, prompt_of
from routereplay.patches.vllm.evidence import doubts, impossible, routed_layers
from routereplay.patches.vllm.recorder import Recorder

logger = logging.getLogger(__name__)

PERIOD_S = 60.0
"""Between two looks at an engine that nobody was seen to bring weights to."""


class LateCanary:
    """Judges one engine until its routes are proven.

    It refuses no request: inference has begun when it judges. While routes are not real they
    are not recorded, and what nothing proves is recorded and watched, as `unproven`.

    Args:
        recorder: of the engine's front end; shows the rows and hears the verdict.
        vocab_size: of the model.
        max_model_len: tokens that one request may have.
        publish: told every state.
        clock: in seconds.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        vocab_size: int,
        max_model_len: int,
        publish: Callable[[State], None] = lambda state: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recorder = recorder
        self._sizes = vocab_size, max_model_len
        self._publish = publish
        self._clock = clock
        self._judging = asyncio.Lock()
        self._attempts = 0
        self._changes = self._judged_changes = 0
        self._again_at = clock() + PERIOD_S
        self.state: State = "unproven"
        publish(self.state)

    def weights_may_have_come(self) -> None:
        """The engine was told something after which its weights can be others."""
        self._changes += 1

    async def before_serving(self, engine: Any) -> None:
        """Return once the routes of an `AsyncLLM` are judged, if they may have become real."""
        if self._is_due() and not is_ours.get():
            async with self._judging:
                # Somebody else may have had it done while we waited.
                if self._is_due() and not await _rests(engine):
                    changes = self._changes
                    await self._judge(engine)
                    self._judged_changes = changes
                    self._again_at = self._clock() + PERIOD_S

    def _is_due(self) -> bool:
        if self.state == "proven":
            return False
        return self._changes > self._judged_changes or self._clock() >= self._again_at

    async def _judge(self, engine: Any) -> None:
        model = self._recorder.model
        prompt = prompt_of(*self._sizes, self._attempts)
        self._attempts += 1
        wrong: list[str] = []
        doubtful: list[str] = []
        layers: tuple[int, ...] = ()
        ours = is_ours.set(True)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                async for steps, completion in ask_ranks(engine, self._recorder, prompt):
                    tokens = [*prompt, *completion]
                    wrong += impossible(steps, model, tokens)
                    doubtful += doubts(steps, model, tokens, len(prompt))
                    if not doubtful:
                        layers = routed_layers(np.concatenate(steps))
        except Exception as error:  # noqa: BLE001 - whatever it is, it says nothing of the routes
            doubtful = [f"the canary generation did not end: {type(error).__name__}: {error}"]
            wrong = []
        finally:
            is_ours.reset(ours)
        self._conclude(wrong, doubtful, layers)

    def _conclude(self, wrong: list[str], doubtful: list[str], layers: tuple[int, ...]) -> None:
        if wrong:
            self._become(
                "failed",
                "routes are not real, whatever the weights are: %s. Requests are served, and "
                "reported as lost (%s) until this has changed. On a GPU try another --moe-backend "
                "or a newer vLLM",
                *("; ".join(wrong), REASON),
            )
            self._recorder.refuse(REASON)
        elif doubtful:
            self._become(
                "unproven",
                "the weights look like placeholders still, so nothing proves that routes are real; "
                "they are recorded and watched: %s",
                "; ".join(doubtful),
            )
            self._recorder.accept()
        else:
            self._recorder.proven(layers)
            self._become("proven", "weights have come, and the canary saw real routes")

    def _become(self, state: State, message: str, *details: str) -> None:
        level = {"failed": logging.ERROR, "unproven": logging.WARNING}.get(state, logging.INFO)
        if state == self.state:
            # Once a minute, and known.
            level = logging.DEBUG
        logger.log(level, f"route recorder: {message}", *details)
        self.state = state
        self._publish(state)


async def _rests(engine: Any) -> bool:
    return bool(await engine.is_sleeping() or await engine.is_paused())
