"""Which turn of a trajectory continues which, and so which of its rows are new.

A row depends on the tokens up to and including its own, so two turns share the rows of
their common token prefix. The store uses this to send each row once, the client to put
a trajectory together; both call the same function and cannot disagree.

The first captured row wins: a later turn may route the uncached tail of its prompt
again, and the row that was used to *sample* is the one to train on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class TurnSpan(NamedTuple):
    """The tokens of one turn and the rows `[row_start, row_stop)` recorded for it."""

    token_ids: np.ndarray
    """`[tokens]` int32."""
    row_start: int
    row_stop: int


class Link(NamedTuple):
    """Where the rows of one turn come from."""

    parent: int | None
    """The earlier turn that supplies the rows before `new_from`."""
    new_from: int
    """First token index whose row this turn supplies itself."""


def common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """Return the length of the longest common prefix of two token arrays."""
    length = min(len(left), len(right))
    differs = left[:length] != right[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length


def link_turns(turns: Sequence[TurnSpan]) -> list[Link]:
    """Link each turn, in the order of capture, to the earlier turn that covers most of it.

    A turn's rows `[row_start, new_from)` repeat its parent's and need not be sent; a
    turn whose rows begin after what its parent covers has a gap that only a missing
    turn could fill, and the caller sees it as `new_from > ` what the chain covers.
    """
    links: list[Link] = []
    covered: list[int] = []  # rows [0, covered[i]) are supplied by turn i and its ancestors
    for index, turn in enumerate(turns):
        parent, shared = None, 0
        # Latest first: it is the parent as a rule, and the others need no comparison then.
        # Of those that reach equally far the earliest is taken.
        for earlier in reversed(range(index)):
            if covered[earlier] < max(shared, 1):
                continue
            reach = min(common_prefix(turn.token_ids, turns[earlier].token_ids), covered[earlier])
            if reach >= max(shared, 1):
                parent, shared = earlier, reach
        new_from = max(min(shared, turn.row_stop), turn.row_start)
        links.append(Link(parent, new_from))
        reaches_back = turn.row_start <= shared
        covered.append(max(turn.row_stop, shared) if reaches_back else shared)
    return links
