"""How rows are written: ids as they are, in as few bits as they need, or without their order.

A cell, the `topk` ids of one layer of one token, fills whole bytes in each of them, so runs of
tokens and of layers are cut out of rows as they are written.

Shape legend: T tokens, L layers, K topk, N cells, C bytes of a cell.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from routereplay.wire.bits import bits_nbytes, pack_bits, unpack_bits
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import InvalidRoutes
from routereplay.wire.sorting import Layout, layout_of, read_sorted, write_sorted

Dtype: TypeAlias = Literal["uint8", "uint16", "bitpack", "sorted"]
"""The way in which the rows of a record are written; all but `sorted` keep the order of ids."""

Codec: TypeAlias = Literal["raw", "bitpack", "sorted"]
"""What a recorder may make of ids; each falls back to the one before where it gains nothing."""


def id_bits(num_experts: int) -> int:
    """Return the bits of the highest id."""
    return max((num_experts - 1).bit_length(), 1)


def id_nbytes(num_experts: int) -> int:
    """Return the bytes of an id that is written as it is."""
    return 1 if num_experts <= 256 else 2


def cell_nbytes(dtype: Dtype, topk: int, num_experts: int) -> int:
    """Return the bytes of a cell as it is written.

    Raises:
        InvalidRoutes: `sorted`, of a model whose ids have no such way.
    """
    if dtype == "sorted":
        return _layout(topk, num_experts).nbytes
    if dtype == "bitpack":
        return bits_nbytes(topk, id_bits(num_experts))
    return topk if dtype == "uint8" else 2 * topk


def dtype_of(codec: Codec, topk: int, num_experts: int) -> Dtype:
    """Return the dtype of the rows that a recorder with this codec sends."""
    if codec == "sorted" and is_shorter("sorted", topk, num_experts):
        return "sorted"
    if codec != "raw" and is_shorter("bitpack", topk, num_experts):
        return "bitpack"
    return "uint8" if id_nbytes(num_experts) == 1 else "uint16"


def is_shorter(dtype: Dtype, topk: int, num_experts: int) -> bool:
    """Tell whether cells are shorter than in the ways that keep more or cost less."""
    plain = topk * id_nbytes(num_experts)
    if dtype == "sorted":
        layout = layout_of(topk, num_experts)
        packed = cell_nbytes("bitpack", topk, num_experts)
        return layout is not None and layout.nbytes < min(plain, packed)
    return dtype != "bitpack" or cell_nbytes(dtype, topk, num_experts) < plain


def write_rows(rows_TLK: np.ndarray, dtype: Dtype, num_experts: int) -> np.ndarray:
    """Return rows of valid ids as they are written: `rows_TLK`, or `[tokens, layers, cell]` uint8.

    Args:
        rows_TLK: `[tokens, layers, topk]`, uint8 or little-endian uint16, the narrower that
            holds the model's ids.
        num_experts: of the model; `is_shorter` says for which there is something to gain.
    """
    tokens, layers, topk = rows_TLK.shape
    ids_NK = rows_TLK.reshape(tokens * layers, topk)
    if dtype == "sorted":
        written_NC = write_sorted(ids_NK, _layout(topk, num_experts))
    elif dtype == "bitpack":
        written_NC = pack_bits(ids_NK, id_bits(num_experts))
    else:
        return rows_TLK
    return written_NC.reshape(tokens, layers, written_NC.shape[1])


def read_rows(data: Buffer, dtype: Dtype, layers: int, topk: int, num_experts: int) -> np.ndarray:
    """Return rows as ids, `[tokens, layers, topk]`: a view unless they are packed or sorted.

    Raises:
        ValueError: `data` is no whole number of rows.
        InvalidRoutes: sorted cells that no choice of experts has.
    """
    if dtype == "uint8" or dtype == "uint16":
        ids_dtype = np.dtype("u1" if dtype == "uint8" else "<u2")
        return np.frombuffer(data, ids_dtype).reshape(-1, layers, topk)
    cell = cell_nbytes(dtype, topk, num_experts)
    written_TLC = np.frombuffer(data, np.uint8).reshape(-1, layers, cell)
    written_NC = written_TLC.reshape(len(written_TLC) * layers, cell)
    size = id_nbytes(num_experts)
    if dtype == "sorted":
        ids_NK = read_sorted(written_NC, topk, size, _layout(topk, num_experts))
    else:
        ids_NK = unpack_bits(written_NC, topk, id_bits(num_experts), size)
    return ids_NK.reshape(len(written_TLC), layers, topk)


def _layout(topk: int, num_experts: int) -> Layout:
    layout = layout_of(topk, num_experts)
    if layout is None:
        msg = f"{topk} ids of {num_experts} experts cannot be sent sorted; send them bit-packed"
        raise InvalidRoutes(msg)
    return layout
