"""The canary of what comes after the start: other weights.

An engine that starts with placeholders (`--load-format dummy`) cannot be judged then: all its
layers hold the same numbers and choose the same experts. And vLLM builds quantized kernels anew
when weights are loaded again, without the hook that captures their routes: rows stay what an
earlier step left behind (0.28 to 0.33, kernels that pick experts by themselves).

A trainer brings weights in a way that the front end may see (a command to the workers, waking
up, going on after a pause) or not. So the engine is asked before the first request after each
of these, and before one a minute while nothing is proven; never on its own account: between
requests a trainer may take the engine's memory away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from routereplay.patches.vllm.canary_request import (
    REASON,
    TIMEOUT_S,
    State,
    ask_ranks,
    is_ours,
    prompt_of,
)
from routereplay.patches.vllm.evidence import doubts, impossible, routed_layers
from routereplay.patches.vllm.recorder import Recorder

logger = logging.getLogger(__name__)

PERIOD_S = 60.0
"""Between two looks at an engine that nobody was seen to bring weights to."""

_NO_END = (
    "the canary generation did not end, so nothing proves that routes are real; they are recorded "
    "and watched: %s: %s"
)


class LateCanary:
    """Judges one engine until its routes are proven, and after each change of its weights.

    It refuses no request: inference has begun when it judges. While routes are not real they
    are not recorded, and what nothing proves is recorded and watched, as `unproven`.

    Args:
        recorder: of the engine's front end; shows the rows and hears the verdict.
        vocab_size: of the model.
        max_model_len: tokens that one request may have.
        publish: told every state.
        clock: in seconds.
        proven: its routes were real with the weights that it started with.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        vocab_size: int,
        max_model_len: int,
        publish: Callable[[State], None] = lambda state: None,
        clock: Callable[[], float] = time.monotonic,
        proven: bool = False,
    ) -> None:
        self._recorder = recorder
        self._sizes = vocab_size, max_model_len
        self._publish = publish
        self._clock = clock
        self._judging = asyncio.Lock()
        # The first prompt was that of the canary at the start.
        self._attempts = int(proven)
        self._had_weights = proven
        self._changes = self._judged_changes = 0
        self._again_at = clock() + PERIOD_S
        self.state: State = "proven" if proven else "unproven"
        if not proven:
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
        if self._changes > self._judged_changes:
            return True
        return self.state != "proven" and self._clock() >= self._again_at

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
            self._become("unproven", _NO_END, type(error).__name__, str(error))
            return
        finally:
            is_ours.reset(ours)
        # What placeholders do, weights that were real once do not.
        self._conclude(doubtful if self._had_weights else wrong, doubtful, layers)

    def _conclude(self, wrong: list[str], doubtful: list[str], layers: tuple[int, ...]) -> None:
        if wrong:
            self._become(
                "failed",
                "routes are not real since the weights changed: %s. Requests are served, and "
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
            self._had_weights = True
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
