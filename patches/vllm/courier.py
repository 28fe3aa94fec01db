"""The thread that waits for the network, so that nobody else does.

A store that accepts and never reads holds a POST for seconds; meanwhile the exporter
thread frames, spools and counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Protocol

from routereplay.patches.vllm.sender import Outcome, Unavailable
from routereplay.wire.digest import Buffer

Frames = Sequence[Sequence[Buffer]]


class Poster(Protocol):
    """What sends a POST: `Sender`."""

    def post(self, frames: Frames) -> Outcome:
        """Send whole frames and return what the answer means."""

    def close(self) -> None:
        """Close the connection."""


class Courier:
    """Sends one POST at a time; used by one thread.

    Args:
        sender: what sends it.
        arrived: called when the answer is there.
    """

    def __init__(self, sender: Poster, arrived: Callable[[], None]) -> None:
        self._sender = sender
        self._arrived = arrived
        self._jobs: SimpleQueue[Frames | None] = SimpleQueue()
        self._outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.busy = False
        """A POST is under way, or its outcome was not fetched."""

    def start(self, frames: Frames) -> None:
        """Begin a POST; not while one is under way."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._run, name="routereplay-courier", daemon=True
            )
            self._thread.start()
        self.busy = True
        self._jobs.put(frames)

    def outcome(self) -> Outcome | None:
        """Return what became of the POST, once; None while it is under way."""
        if not self.busy or self._outcomes.empty():
            return None
        self.busy = False
        return self._outcomes.get()

    def close(self) -> None:
        """End the thread, after the POST that is under way; does not wait for it."""
        self._jobs.put(None)
        if self._thread is None:
            self._sender.close()

    def _run(self) -> None:
        while (frames := self._jobs.get()) is not None:
            try:
                outcome = self._sender.post(frames)
            except BaseException as error:  # noqa: BLE001 - the exporter waits for an outcome
                outcome = Unavailable(f"{type(error).__name__}: {error}", 0.0)
            del frames
            self._outcomes.put(outcome)
            self._arrived()
        self._sender.close()
