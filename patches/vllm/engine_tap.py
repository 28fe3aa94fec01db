"""The second tap: an engine whose front end is not Python records by itself.

vLLM's Rust front end speaks to the engine core over a socket and has no `OutputProcessor`.
What its requests bring, and every step's rows, pass through the engine core too, so the same
recorder stands there. It runs in the engine's loop, and it knows less than a front end does:

* The front end looks for stop strings, and ends such a request like one whose client went
  away. Whatever the engine sampled until it heard of that is in the record, so a record that
  it did not end by itself is sealed as `open_ended`.
* A request is one choice. The Rust front end takes no more (`n` must be 1, one prompt).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from routereplay.patches.vllm.canary import Canary
from routereplay.patches.vllm.guard import Guard
from routereplay.patches.vllm.recorder import Recorder

logger = logging.getLogger(__name__)

TAP = "_routereplay_tap"
"""Attribute of a `Scheduler` that records."""

_CORE_REQUEST = "_routereplay_core_request"
"""Attribute of the engine's `Request`: what it was made from, until the scheduler has it."""


def taps_engine(environ: Mapping[str, str]) -> bool:
    """Whether engines record the requests of front ends that do not.

    `ROUTEREPLAY_TAP=engine` says so where vLLM itself is not told of its Rust front end: the
    engines of `vllm-rs serve`, or started with `--headless` for it.
    """
    if environ.get("ROUTEREPLAY_TAP", "auto").strip().lower() == "engine":
        return True
    return environ.get("VLLM_USE_RUST_FRONTEND", "0").strip() not in {"", "0"}


class EngineState:
    """One request of an engine, as the recorder reads vLLM's `RequestState`.

    Args:
        weight_version: of the engine's weights, or empty.
    """

    __slots__ = ("output_token_ids", "weight_version_starts")

    parent_req = None
    request_index = 0

    def __init__(self, weight_version: str) -> None:
        self.output_token_ids: list[int] = []
        """What left the engine."""
        self.weight_version_starts = [(weight_version, 0)] if weight_version else []

    @property
    def detokenizer(self) -> EngineState:
        """Where `RequestState` keeps its tokens."""
        return self

    def num_output_tokens(self) -> int:
        """Return how many tokens left the engine."""
        return len(self.output_token_ids)

    def weights_changed(self, version: str) -> None:
        """Tokens from now on are of other weights."""
        first = len(self.output_token_ids)
        if self.weight_version_starts and self.weight_version_starts[-1][1] == first:
            self.weight_version_starts.pop()
        self.weight_version_starts.append((version, first))


class EngineTap:
    """Records the requests of one engine core; its methods run in the engine's loop.

    Args:
        recorder: of this engine.
        canary: proves its routes before the loop begins, unless there is none.
    """

    def __init__(self, recorder: Recorder, canary: Canary | None) -> None:
        self.recorder = recorder
        self.canary = canary
        self.weight_version_of: Callable[[], str] | None = None
        """Tells the version of the engine's weights; None: this release has none."""
        self._weight_version = ""
        self._guard = Guard(logger, recorder.failed, recorder.give_up)

    def request_added(self, request: Any) -> None:
        """Open the record of the engine's `Request`, which the scheduler is about to get."""
        self._guard.run(self._request_added, request)

    def step(self, outputs: Sequence[Any]) -> None:
        """Take the rows of a step's `EngineCoreOutput`s, and seal what it ended."""
        self._guard.run(self._step, outputs)

    def requests_aborted(self, request_ids: str | Iterable[str] | None) -> None:
        """End records whose request somebody else ended; None: all of them."""
        self._guard.run(self._requests_aborted, request_ids)

    def _request_added(self, request: Any) -> None:
        core_request = request.__dict__.pop(_CORE_REQUEST, None)
        if core_request is None or core_request.request_id in self.recorder.open:
            return
        if self.weight_version_of is not None:
            self._weights_are(self.weight_version_of())
        self.recorder.request_added(core_request, EngineState(self._weight_version))
        # From which row on, and whatever else was added: the engine reads it from its own.
        request.sampling_params = core_request.sampling_params

    def _step(self, outputs: Sequence[Any]) -> None:
        recorder = self.recorder
        if self.weight_version_of is not None:
            self._weights_are(self.weight_version_of())
        taken = recorder.take(outputs)
        for output in outputs:
            record = recorder.open.get(output.request_id)
            if record is not None:
                record.state.output_token_ids += output.new_token_ids
        recorder.settle_finished(taken, outputs)

    def _requests_aborted(self, request_ids: str | Iterable[str] | None) -> None:
        if isinstance(request_ids, str):
            request_ids = (request_ids,)
        self.recorder.requests_aborted(
            list(self.recorder.open) if request_ids is None else request_ids
        )

    def _weights_are(self, version: str) -> None:
        """Note the version of the weights that vLLM counts the next tokens to."""
        if version == self._weight_version:
            return
        self._weight_version = version
        for record in self.recorder.open.values():
            record.state.weights_changed(version)


def keep_core_request(request: Any, core_request: Any) -> None:
    """Remember what a `Request` was made from: it has no external id itself."""
    setattr(request, _CORE_REQUEST, core_request)
