"""Numbers in as few bits as they need, many at once.

Number i of a cell is bits `[i * b, (i + 1) * b)` of its bytes, little-endian. In numpy, eight
numbers at a time in words of 64 bits, in blocks that stay in the cache.

Shape legend: N cells, K numbers of a cell, C bytes of a cell.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_GROUP = 8
"""Numbers that are packed at once: they fill a whole number of bytes whatever their bits."""
_BLOCK = 256 * 1024
"""Numbers that are packed in one go, so that what is at hand stays in the cache."""


def bits_nbytes(count: int, bits: int) -> int:
    """Return the bytes of `count` numbers of `bits` bits each."""
    return -(-count * bits // 8)


def pack_bits(ids_NK: np.ndarray, bits: int) -> np.ndarray:
    """Return the low `bits` bits of each number, `[cells, bytes]` uint8.

    Args:
        ids_NK: uint8 or little-endian uint16.
        bits: 1 to those of the dtype.
    """
    packed_NC = np.empty((len(ids_NK), bits_nbytes(ids_NK.shape[1], bits)), np.uint8)
    for block in blocks(*ids_NK.shape):
        words = _words(ids_NK[block])
        for low, high, shift in _merges(bits, 8 * ids_NK.itemsize):
            moved = (words & high) >> shift
            words &= low
            words |= moved
        if ids_NK.itemsize == 2:
            words[:, 0::2] |= words[:, 1::2] << np.uint64(4 * bits)
            words[:, 1::2] >>= np.uint64(64 - 4 * bits)
        groups = np.ascontiguousarray(words.view(_group(bits, ids_NK.itemsize))["bits"])
        packed_NC[block] = groups.view(np.uint8)[:, : packed_NC.shape[1]]
    return packed_NC


def unpack_bits(packed_NC: np.ndarray, count: int, bits: int, size: int) -> np.ndarray:
    """Return `[cells, count]` numbers of `size` bytes, 1 or 2, out of `[cells, bytes]` uint8."""
    ids_NK = np.empty((len(packed_NC), count), np.dtype(f"<u{size}"))
    for block in blocks(len(ids_NK), count):
        packed = _padded(packed_NC[block], -(-count // _GROUP) * bits)
        words = np.zeros((len(packed), -(-count // _GROUP) * size), "<u8")
        words.view(_group(bits, size))["bits"] = packed.view(f"V{bits}")
        if size == 2:
            words[:, 1::2] <<= np.uint64(64 - 4 * bits)
            words[:, 1::2] |= words[:, 0::2] >> np.uint64(4 * bits)
            words &= np.uint64((1 << 4 * bits) - 1)
        for low, high, shift in reversed(_merges(bits, 8 * size)):
            moved = (words << shift) & high
            words &= low
            words |= moved
        ids_NK[block] = words.view(ids_NK.dtype)[:, :count]
    return ids_NK


def blocks(cells: int, count: int) -> Iterator[slice]:
    """Yield runs of cells of `count` numbers that are handled in one go."""
    step = max(_BLOCK // count, 1)
    for start in range(0, cells, step):
        yield slice(start, min(start + step, cells))


def _words(ids_NK: np.ndarray) -> np.ndarray:
    """Return a copy of numbers as words of 64 bits, each cell filled up to whole groups."""
    padded = _padded(ids_NK, -(-ids_NK.shape[1] // _GROUP) * _GROUP)
    return padded.astype(padded.dtype.newbyteorder("<"), copy=True).view("<u8")


def _padded(rows: np.ndarray, width: int) -> np.ndarray:
    if rows.shape[1] == width:
        return np.ascontiguousarray(rows)
    padded = np.zeros((len(rows), width), rows.dtype)
    padded[:, : rows.shape[1]] = rows
    return padded


def _merges(bits: int, lane: int) -> list[tuple[np.uint64, np.uint64, np.uint64]]:
    """Return the steps in which the numbers of a word move together, lanes in pairs.

    Of each: the lanes that stay, those that move, and how far.
    """
    steps = []
    while lane < 64:
        stay = sum(((1 << bits) - 1) << at for at in range(0, 64, 2 * lane))
        steps.append((np.uint64(stay), np.uint64(stay << lane), np.uint64(lane - bits)))
        bits, lane = 2 * bits, 2 * lane
    return steps


def _group(bits: int, size: int) -> np.dtype[np.void]:
    """Return the dtype of a group: its packed bytes at the beginning of its words."""
    return np.dtype(
        {"names": ["bits"], "formats": [f"V{bits}"], "offsets": [0], "itemsize": _GROUP * size}
    )
