"""How rows are written: ids as they are, or each in as few bits as its model needs.

`bitpack` keeps the order of ids and has a fixed rate: id i of a cell (the `topk` ids of one
layer of one token) is bits `[i * b, (i + 1) * b)` of its bytes, little-endian, where b is the
bits of the highest id. A cell fills whole bytes, so runs of tokens and of layers are cut out of
packed rows as they are out of others.

Shape legend: T tokens, L layers, K topk, C bytes of a cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np

from routereplay.wire.digest import Buffer

Dtype: TypeAlias = Literal["uint8", "uint16", "bitpack"]

_GROUP = 8
"""Ids that are packed at once: they fill a whole number of bytes whatever their bits."""
_BLOCK_IDS = 256 * 1024
"""Packed in one go, so that what is at hand stays in the cache."""


def id_bits(num_experts: int) -> int:
    """Return the bits of the highest id."""
    return max((num_experts - 1).bit_length(), 1)


def id_nbytes(num_experts: int) -> int:
    """Return the bytes of an id that is not packed."""
    return 1 if num_experts <= 256 else 2


def cell_nbytes(dtype: Dtype, topk: int, num_experts: int) -> int:
    """Return the bytes of a cell as it is written."""
    if dtype == "bitpack":
        return -(-topk * id_bits(num_experts) // 8)
    return topk if dtype == "uint8" else 2 * topk


def packs(topk: int, num_experts: int) -> bool:
    """Tell whether packed cells are shorter: four ids of 7 bits fill four bytes as they are."""
    return cell_nbytes("bitpack", topk, num_experts) < topk * id_nbytes(num_experts)


def bitpack(rows_TLK: np.ndarray, num_experts: int) -> np.ndarray:
    """Return rows `[tokens, layers, topk]` of valid ids as `[tokens, layers, cell]` uint8.

    Args:
        rows_TLK: uint8 or little-endian uint16, the narrower that holds the model's ids.
        num_experts: of the model; `packs` says for which there is something to gain.
    """
    tokens, layers, topk = rows_TLK.shape
    bits, ids_NK = id_bits(num_experts), rows_TLK.reshape(tokens * layers, topk)
    packed_NC = np.empty((len(ids_NK), cell_nbytes("bitpack", topk, num_experts)), np.uint8)
    for block in _blocks(len(ids_NK), topk):
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
    return packed_NC.reshape(tokens, layers, packed_NC.shape[1])


def read_rows(data: Buffer, dtype: Dtype, layers: int, topk: int, num_experts: int) -> np.ndarray:
    """Return rows as they were recorded, `[tokens, layers, topk]`: a view unless they are packed.

    Raises:
        ValueError: `data` is no whole number of rows.
    """
    if dtype != "bitpack":
        ids_dtype = np.dtype("u1" if dtype == "uint8" else "<u2")
        return np.frombuffer(data, ids_dtype).reshape(-1, layers, topk)
    packed_TLC = np.frombuffer(data, np.uint8).reshape(
        -1, layers, cell_nbytes(dtype, topk, num_experts)
    )
    return _unpacked(packed_TLC, topk, num_experts)


def _unpacked(packed_TLC: np.ndarray, topk: int, num_experts: int) -> np.ndarray:
    tokens, layers, cell = packed_TLC.shape
    bits, size = id_bits(num_experts), id_nbytes(num_experts)
    packed_NC = packed_TLC.reshape(tokens * layers, cell)
    ids_NK = np.empty((len(packed_NC), topk), np.dtype(f"<u{size}"))
    for block in _blocks(len(ids_NK), topk):
        packed = _padded(packed_NC[block], -(-topk // _GROUP) * bits)
        words = np.zeros((len(packed), -(-topk // _GROUP) * size), "<u8")
        words.view(_group(bits, size))["bits"] = packed.view(f"V{bits}")
        if size == 2:
            words[:, 1::2] <<= np.uint64(64 - 4 * bits)
            words[:, 1::2] |= words[:, 0::2] >> np.uint64(4 * bits)
            words &= np.uint64((1 << 4 * bits) - 1)
        for low, high, shift in reversed(_merges(bits, 8 * size)):
            moved = (words << shift) & high
            words &= low
            words |= moved
        ids_NK[block] = words.view(ids_NK.dtype)[:, :topk]
    return ids_NK.reshape(tokens, layers, topk)


def _words(ids_NK: np.ndarray) -> np.ndarray:
    """Return a copy of ids as words of 64 bits, each cell filled up to whole groups."""
    padded = _padded(ids_NK, -(-ids_NK.shape[1] // _GROUP) * _GROUP)
    return padded.astype(padded.dtype.newbyteorder("<"), copy=True).view("<u8")


def _padded(rows: np.ndarray, width: int) -> np.ndarray:
    if rows.shape[1] == width:
        return np.ascontiguousarray(rows)
    padded = np.zeros((len(rows), width), rows.dtype)
    padded[:, : rows.shape[1]] = rows
    return padded


def _merges(bits: int, lane: int) -> list[tuple[np.uint64, np.uint64, np.uint64]]:
    """Return the steps in which the ids of a word move together, lanes in pairs.

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


def _blocks(cells: int, topk: int) -> Iterator[slice]:
    step = max(_BLOCK_IDS // topk, 1)
    for start in range(0, cells, step):
        yield slice(start, min(start + step, cells))
