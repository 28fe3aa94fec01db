"""Where everything lies in one file of a bundle: the safetensors format, computed.

Shape legend: L layers, N rows, K topk, S sequences, J blocks of rows.

safetensors (https://github.com/huggingface/safetensors#format) is eight bytes of header
length, a JSON header and the tensors without a gap. The layout of a bundle's file
follows from its manifest, so a reader computes the header and compares instead of
parsing what may be damaged, and maps the tensors itself: the library's numpy slices are
copies made in two steps, and would be one more dependency of a trainer that only
fetches. Any reader of safetensors opens the files all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np

from routereplay.client.packed import ModelShape
from routereplay.wire.digest import DIGEST_BYTES
from routereplay.wire.routes import dtype_for, numpy_dtype

_ALIGNMENT = 64
"""Of the first tensor; the ones that follow are at least aligned to their own items."""

_NAMES = {"<i8": "I64", "<i4": "I32", "<u2": "U16", "|u1": "U8", "|b1": "BOOL"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int
    """In the file, not in the data section."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """The header and the tensors of one file."""

    header: bytes
    """Length prefix and JSON, padded with spaces."""

    tensors: dict[str, Tensor]
    """By name, in the order of the file."""

    nbytes: int
    """Size of the file."""


def layout_of(model: ModelShape, rows: int, sequences: int | None, block_rows: int) -> Layout:
    """Return the layout of a batch of `rows` rows; `sequences` is None without cu_seqlens."""
    shapes: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]] = {}
    if sequences is not None:
        shapes["cu_seqlens"] = (sequences + 1,), np.dtype("<i8")
    blocks = math.ceil(rows / block_rows)
    shapes |= {
        "token_ids": ((rows,), np.dtype("<i4")),
        "experts": (
            (model.num_layers, rows, model.topk),
            numpy_dtype(dtype_for(model.num_experts)),
        ),
        "live": ((rows,), np.dtype("bool")),
        "padding": ((rows,), np.dtype("bool")),
        "block_digests": ((model.num_layers, blocks, DIGEST_BYTES), np.dtype("u1")),
    }
    entries, stop = {}, 0
    for name, (shape, dtype) in shapes.items():
        start, stop = stop, stop + math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": _NAMES[dtype.str],
            "shape": shape,
            "data_offsets": (start, stop),
        }
    header = _header(msgspec.json.encode(entries))
    tensors, offset = {}, len(header)
    for name, (shape, dtype) in shapes.items():
        tensors[name] = Tensor(shape, dtype, offset)
        offset += tensors[name].nbytes
    return Layout(header, tensors, offset)


def _header(entries: bytes) -> bytes:
    length = -(-(8 + len(entries)) // _ALIGNMENT) * _ALIGNMENT - 8
    return length.to_bytes(8, "little") + entries.ljust(length)
