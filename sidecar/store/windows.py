"""Groups of values of which one round trip moves a bounded number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

WINDOW_BYTES = 4 * 1024 * 1024


def windows(
    values: Sequence[T], nbytes: Callable[[T], int], most: Callable[[], int] = lambda: WINDOW_BYTES
) -> Iterator[list[T]]:
    """Group values, in order; a group ends with the one that reaches `most()` bytes."""
    window: list[T] = []
    room = most()
    for value in values:
        window.append(value)
        room -= nbytes(value)
        if room <= 0:
            yield window
            window, room = [], most()
    if window:
        yield window
