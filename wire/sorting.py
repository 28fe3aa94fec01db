"""Which ids a cell holds, without their order, at a fixed rate.

The ids of a cell are sorted and each is cut in two. The low bits are written as they are. The
high parts only rise, so there are few ways to choose them, `C(parts + topk - 1, topk)`, and
each way has a number, its index, in the combinatorial number system. A cell is its index and
then its low bits, each filled up to whole bytes.

The number of the whole set would be at most a byte shorter and has no table: every id of it
costs a search. And a table holds what is no set as well: a dense layer is all zeros.

Shape legend: N cells, K topk, C bytes of a cell, W ways to choose the high parts.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb
from typing import NamedTuple

import numpy as np

from routereplay.wire.bits import bits_nbytes, blocks, pack_bits, unpack_bits
from routereplay.wire.errors import InvalidRoutes

_MAX_WAYS = 1 << 16
"""An index has two bytes at most."""
_MAX_TABLE_IDS = 1 << 19
"""Of all ways together: half a megabyte or one, which stays in the cache."""
_MAX_TOPK = 256
_MAX_EXPERTS = 1 << 16
"""What a store takes; the ways of more would be numbers of many megabytes."""


class Layout(NamedTuple):
    """How the cells of a model are written."""

    low_bits: int
    """Of each id, written as they are."""
    parts: int
    """Values of what is above them, the high part."""
    ways: int
    """To choose the high parts of a cell: values of its index."""
    nbytes: int
    """Of a cell."""

    @property
    def index_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Of an index as it is written."""
        return np.dtype("u1" if self.ways <= 256 else "<u2")


@lru_cache(maxsize=64)
def layout_of(topk: int, num_experts: int) -> Layout | None:
    """Return the shortest layout, of several the one with the smallest table.

    None: the table of such a model would be too large.
    """
    if not 0 < topk <= _MAX_TOPK or not 0 < num_experts <= _MAX_EXPERTS:
        return None
    found = []
    for low_bits in range((num_experts - 1).bit_length()):
        parts = -(-num_experts >> low_bits)
        ways = comb(parts + topk - 1, topk)
        if ways <= _MAX_WAYS and ways * topk <= _MAX_TABLE_IDS:
            nbytes = (1 if ways <= 256 else 2) + bits_nbytes(topk, low_bits)
            found.append(Layout(low_bits, parts, ways, nbytes))
    return min(found, key=lambda layout: (layout.nbytes, layout.ways), default=None)


def write_sorted(ids_NK: np.ndarray, layout: Layout) -> np.ndarray:
    """Return cells of valid ids, uint8 or little-endian uint16, as `[cells, bytes]` uint8."""
    cells, topk = ids_NK.shape
    written_NC = np.empty((cells, layout.nbytes), np.uint8)
    indices = _indices(layout, topk)
    start = layout.index_dtype.itemsize
    for block in blocks(cells, topk):
        # Each rank of a block lies in one piece, so that all its cells are compared at once.
        ranks_KN = _sorted(np.ascontiguousarray(ids_NK[block].T))
        index = np.zeros(ranks_KN.shape[1], layout.index_dtype)
        for below, ids in zip(indices, ranks_KN, strict=True):
            index += below.take(ids >> layout.low_bits, mode="clip")
        written_NC[block, :start] = index.view(np.uint8).reshape(-1, start)
        if layout.low_bits:
            written_NC[block, start:] = pack_bits(ranks_KN.T, layout.low_bits)
    return written_NC


def read_sorted(written_NC: np.ndarray, topk: int, size: int, layout: Layout) -> np.ndarray:
    """Return the ids of cells, `[cells, topk]` of `size` bytes each, rising in each cell.

    Raises:
        InvalidRoutes: a cell has an index that no choice of experts has.
    """
    table_WK = _table(layout, topk, size)
    ids_NK = np.empty((len(written_NC), topk), table_WK.dtype)
    start = layout.index_dtype.itemsize
    for block in blocks(len(ids_NK), topk):
        cells = written_NC[block]
        index = np.ascontiguousarray(cells[:, :start]).view(layout.index_dtype)[:, 0]
        if (highest := int(index.max(initial=0))) >= layout.ways:
            msg = f"a sorted cell has index {highest}; there are {layout.ways} for this model"
            raise InvalidRoutes(msg, highest=highest, ways=layout.ways)
        ids_NK[block] = table_WK.take(index, axis=0)
        if layout.low_bits:
            ids_NK[block] |= unpack_bits(cells[:, start:], topk, layout.low_bits, size)
    return ids_NK


def _sorted(ranks_KN: np.ndarray) -> np.ndarray:
    """Sort each column in place, and return the array."""
    lower = np.empty_like(ranks_KN[0])
    for above, below in _comparators(len(ranks_KN)):
        np.minimum(ranks_KN[above], ranks_KN[below], out=lower)
        np.maximum(ranks_KN[above], ranks_KN[below], out=ranks_KN[below])
        ranks_KN[above] = lower
    return ranks_KN


@lru_cache(maxsize=64)
def _comparators(count: int) -> tuple[tuple[int, int], ...]:
    """Return Batcher's network for `count` values: the pairs to put in order, one by one."""
    sizes = [1 << power for power in range((count - 1).bit_length())]
    return tuple(
        (at, at + step)
        for merged in sizes
        for step in reversed(sizes[: sizes.index(merged) + 1])
        for start in range(step % merged, count - step, 2 * step)
        for at in range(start, min(start + step, count - step))
        if at // (2 * merged) == (at + step) // (2 * merged)
    )


@lru_cache(maxsize=16)
def _indices(layout: Layout, topk: int) -> tuple[np.ndarray, ...]:
    """Return, for each rank, how many ways have a lower high part there and above the same."""
    return tuple(
        np.array([comb(high + rank, rank + 1) for high in range(layout.parts)], layout.index_dtype)
        for rank in range(topk)
    )


@lru_cache(maxsize=16)
def _table(layout: Layout, topk: int, size: int) -> np.ndarray:
    """Return the high parts that each index stands for, `[ways, topk]`, where they belong."""
    ways_WK = np.zeros((1, 0), np.dtype(f"<u{size}"))
    for rank in range(topk):
        # By the highest part, and under each the ways of the ranks below that do not exceed it.
        grown = []
        for high in range(layout.parts):
            lower = ways_WK[: comb(high + rank, rank)]
            grown.append(np.column_stack([lower, np.full(len(lower), high, lower.dtype)]))
        ways_WK = np.concatenate(grown)
    return ways_WK << layout.low_bits
