"""Which rows the store has of each trajectory, as far as this process sent them.

A prompt that begins with the tokens of an earlier turn needs no rows for them. Known of
a turn are two lengths, those of its prompt and of all its rows, and a hash of the token
ids of each part: a few hundred bytes, whatever the length. The hash is Python's own of a
tuple of integers, 0.1 ms for 32k tokens on the event loop; a collision is no danger, as
the store compares a cryptographic one before it takes a delta.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

_TURNS = 32
"""Turns remembered of one trajectory: enough for forks and for 16 choices of one turn."""
_MOST_HASHES = 8
"""Prompts of different length that are hashed to find one parent."""


class ParentId(NamedTuple):
    """The record that rows are known of."""

    request_id: str
    choice: int
    upload_id: str


class Lineage(NamedTuple):
    """What two turns must have in common, besides tokens, to share rows."""

    engine_id: str
    model_name: str
    policy_version: str
    """`vllm_xargs.policy_version`, or empty."""
    weight_version: str
    """vLLM's own, where it has one, or empty."""


class Shared(NamedTuple):
    """Rows `[0, rows)` of a prompt are those of `parent` and its ancestors."""

    parent: ParentId
    rows: int


class _Turn(NamedTuple):
    record: ParentId
    lineage: Lineage
    prompt_len: int
    prompt_hash: int
    last_of_prompt: int
    rows: int
    sampled_hash: int
    """Of the sampled tokens that have a row: all but the last one."""


class KnownPrefixes:
    """Turns by trajectory, the least recently used forgotten first. Safe between threads.

    Args:
        limit: turns remembered in all, about 0.5 KB each.
    """

    def __init__(self, limit: int = 65_536) -> None:
        self._limit = limit
        self._count = 0
        self._trajectories: OrderedDict[str, deque[_Turn]] = OrderedDict()
        self._lock = threading.Lock()

    def note(
        self,
        trajectory: str,
        record: ParentId,
        lineage: Lineage,
        prompt: Sequence[int],
        completion: Sequence[int],
    ) -> None:
        """A turn is whole and on its way: it has the row of every token but the last one."""
        sampled = tuple(completion[:-1])
        turn = _Turn(
            *(record, lineage, len(prompt), hash(tuple(prompt)), prompt[-1]),
            *(len(prompt) + len(sampled), hash(sampled)),
        )
        with self._lock:
            turns = self._trajectories.setdefault(trajectory, deque())
            self._trajectories.move_to_end(trajectory)
            turns.append(turn)
            self._count += 1
            if len(turns) > _TURNS:
                turns.popleft()
                self._count -= 1
            while self._count > self._limit:
                _, forgotten = self._trajectories.popitem(last=False)
                self._count -= len(forgotten)

    def find(self, trajectory: str, lineage: Lineage, prompt: Sequence[int]) -> Shared | None:
        """Return the turn whose rows cover most of `prompt`, or None.

        At least the last token of the prompt is left without: engines before vLLM 0.30 die
        of a request that wants no row of its prompt.
        """
        with self._lock:
            # Newest first, and so among equals: its rows have the longest to live.
            turns = list(self._trajectories.get(trajectory, ()))[::-1]
            if turns:
                self._trajectories.move_to_end(trajectory)
        best: Shared | None = None
        hashes: dict[int, int] = {}
        for turn in sorted(turns, key=lambda turn: -turn.rows):
            if best is not None and best.rows >= turn.rows:
                break
            if turn.lineage != lineage or not _may_begin(prompt, turn):
                continue
            length = turn.prompt_len
            if length not in hashes:
                if len(hashes) == _MOST_HASHES:
                    break
                hashes[length] = hash(tuple(prompt[:length]))
            if hashes[length] != turn.prompt_hash:
                continue
            # Of a prompt that leaves the sampled tokens out or changes them, this is what is left.
            rows = length
            if turn.rows <= len(prompt):
                sampled = tuple(prompt[length : turn.rows])
                rows = turn.rows if hash(sampled) == turn.sampled_hash else length
            if best is None or rows > best.rows:
                best = Shared(turn.record, rows)
        if best is None:
            return None
        rows = min(best.rows, len(prompt) - 1)
        return Shared(best.parent, rows) if rows else None

    def forget(self, trajectory: str) -> None:
        """Something of a trajectory is lost: its next turn begins anew, with every row."""
        with self._lock:
            self._count -= len(self._trajectories.pop(trajectory, ()))


def _may_begin(prompt: Sequence[int], turn: _Turn) -> bool:
    return len(prompt) >= turn.prompt_len and prompt[turn.prompt_len - 1] == turn.last_of_prompt
