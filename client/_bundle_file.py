"""One file of a bundle, written in one pass and read by mapping it.

Shape legend: L layers, N rows, K topk, J blocks of rows.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

from routereplay.client._bundle_layout import Layout
from routereplay.client.packed import PackedRoutes
from routereplay.wire.digest import digest
from routereplay.wire.errors import CorruptRecord

_INDEX = ("cu_seqlens", "token_ids", "live", "padding", "block_digests")
"""Every tensor but the planes: small, and read whole."""


def write_batch(
    path: Path,
    layout: Layout,
    packed: PackedRoutes,
    token_ids: np.ndarray,
    cu_seqlens: np.ndarray | None,
    block_rows: int,
) -> bytes:
    """Write one batch, layer by layer, onto the disk; return its index digest."""
    arrays = {"token_ids": token_ids, "live": packed.live, "padding": packed.padding}
    if cu_seqlens is not None:
        arrays["cu_seqlens"] = cu_seqlens
    with path.open("xb") as file:
        file.write(layout.header)
        for name, tensor in layout.tensors.items():
            if name == "experts":
                digests = []
                for layer_idx in range(tensor.shape[0]):
                    plane_NK = np.ascontiguousarray(packed.experts[:, layer_idx], tensor.dtype)
                    digests += _block_digests(plane_NK, block_rows)
                    file.write(plane_NK.data)
                joined = np.frombuffer(b"".join(digests), np.uint8)
                arrays["block_digests"] = joined.reshape(layout.tensors["block_digests"].shape)
            else:
                arrays[name] = np.ascontiguousarray(arrays[name], tensor.dtype)
                file.write(arrays[name].data)
        file.flush()
        os.fsync(file.fileno())
    return _index_digest(arrays)


class BatchFile:
    """A mapped batch. What is read is compared with its digest first, and only that.

    Raises:
        CorruptRecord: the file is missing, cut, or not what was saved.
    """

    def __init__(self, path: Path, layout: Layout, index_digest: bytes, block_rows: int) -> None:
        self._path = path
        self._block_rows = block_rows
        buffer = self._map(layout)
        arrays = {
            name: np.frombuffer(
                buffer, tensor.dtype, int(np.prod(tensor.shape)), tensor.offset
            ).reshape(tensor.shape)
            for name, tensor in layout.tensors.items()
        }
        if _index_digest(arrays) != index_digest:
            reason = "its token ids, masks or digests are not those that were saved"
            raise self._corrupt(reason)
        self._experts_LNK = arrays["experts"]
        self._digests_LJ = arrays["block_digests"]
        self._verified_LJ = np.zeros(self._digests_LJ.shape[:2], bool)
        self.token_ids = arrays["token_ids"]
        self.live = arrays["live"]
        self.padding = arrays["padding"]
        self.cu_seqlens = arrays.get("cu_seqlens")

    @staticmethod
    def check_size(path: Path, layout: Layout) -> None:
        """Raise `CorruptRecord` unless the file is there and has its size."""
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            msg = f"{path} is missing from its bundle; copy or save the bundle again"
            raise CorruptRecord(msg) from None
        if size != layout.nbytes:
            msg = (
                f"{path} has {size} bytes, expected {layout.nbytes}: it was cut, or is of another "
                "bundle; copy or save the bundle again"
            )
            raise CorruptRecord(msg, found=size, expected=layout.nbytes)

    def planes(self, layers: range, rows: slice) -> np.ndarray:
        """Return a view `[layers, rows, topk]` of the map, after its blocks are verified."""
        blocks = range(rows.start // self._block_rows, -(-rows.stop // self._block_rows))
        if rows.stop > rows.start:
            self._verify(layers, blocks)
        return self._experts_LNK[layers.start : layers.stop, rows]

    def gathered(self, layers: range, rows: np.ndarray) -> np.ndarray:
        """Return a copy `[layers, rows, topk]` of single rows, after their blocks are verified."""
        self._verify(layers, np.unique(rows // self._block_rows).tolist())
        return self._experts_LNK[layers.start : layers.stop, rows]

    def _verify(self, layers: range, blocks: range | list[int]) -> None:
        for layer_idx in layers:
            for block in blocks:
                if self._verified_LJ[layer_idx, block]:
                    continue
                start = block * self._block_rows
                rows_NK = self._experts_LNK[layer_idx, start : start + self._block_rows]
                if digest(rows_NK.data) != self._digests_LJ[layer_idx, block].tobytes():
                    stop = start + len(rows_NK)
                    reason = f"layer {layer_idx}, rows {start}:{stop} are not those saved"
                    raise self._corrupt(reason)
                self._verified_LJ[layer_idx, block] = True

    def _map(self, layout: Layout) -> mmap.mmap:
        self.check_size(self._path, layout)
        with self._path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if buffer[: len(layout.header)] != layout.header:
            reason = "its header is not the one its manifest demands"
            raise self._corrupt(reason)
        return buffer

    def _corrupt(self, reason: str) -> CorruptRecord:
        msg = f"{self._path} is damaged: {reason}; copy or save the bundle again"
        return CorruptRecord(msg)


def _block_digests(plane_NK: np.ndarray, block_rows: int) -> list[bytes]:
    starts = range(0, len(plane_NK), block_rows)
    return [digest(plane_NK[start : start + block_rows].data) for start in starts]


def _index_digest(arrays: dict[str, np.ndarray]) -> bytes:
    return digest(*(arrays[name].data for name in _INDEX if name in arrays))
