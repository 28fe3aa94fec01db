"""Expert heat maps as PNG, written with the standard library: one panel a record.

Shape legend: L layers, E experts, H pixel rows, W pixel columns.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Five stops of viridis: dark is little, light is much, told apart in grey and by everyone.
_STOPS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])
_GAP = 6
_BACKGROUND = 255


def write_heat_map(path: Path, panels: Sequence[np.ndarray]) -> None:
    """Write `[layers, experts]` counts as pictures below each other; each layer sums to one.

    A cell is a layer's share of choices for one expert; the lightest colour is the highest
    share in the picture. Dense layers are darkest throughout.
    """
    shares = [counts_LE / np.maximum(counts_LE.sum(1, keepdims=True), 1) for counts_LE in panels]
    highest = max((float(share_LE.max(initial=0.0)) for share_LE in shares), default=0.0) or 1.0
    widest = max((share_LE.shape[1] for share_LE in shares), default=1)
    cell = int(np.clip(1024 // max(widest, 1), 2, 16))
    pictures = [_picture(share_LE / highest, cell) for share_LE in shares]
    _write_png(path, _below_each_other(pictures))


def _picture(level_LE: np.ndarray, cell: int) -> np.ndarray:
    """Return `[H, W, 3]` uint8 of levels from 0 to 1."""
    position_LE = level_LE * (len(_STOPS) - 1)
    below_LE = np.clip(position_LE.astype(int), 0, len(_STOPS) - 2)
    part_LE1 = (position_LE - below_LE)[..., None]
    colours = _STOPS[below_LE] * (1 - part_LE1) + _STOPS[below_LE + 1] * part_LE1
    picture: np.ndarray = colours.round().astype(np.uint8).repeat(cell, 0).repeat(cell, 1)
    return picture


def _below_each_other(pictures: Sequence[np.ndarray]) -> np.ndarray:
    width = max((picture.shape[1] for picture in pictures), default=1)
    rows: list[np.ndarray] = []
    for picture in pictures:
        if rows:
            rows.append(np.full((_GAP, width, 3), _BACKGROUND, np.uint8))
        missing = width - picture.shape[1]
        rows.append(np.pad(picture, ((0, 0), (0, missing), (0, 0)), constant_values=_BACKGROUND))
    return np.concatenate(rows) if rows else np.full((1, 1, 3), _BACKGROUND, np.uint8)


def _write_png(path: Path, pixels_HW3: np.ndarray) -> None:
    height, width, _ = pixels_HW3.shape
    # Each row of pixels is preceded by its filter: 0, none.
    rows = np.pad(pixels_HW3.reshape(height, width * 3), ((0, 0), (1, 0)))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in (
            (b"IHDR", head),
            (b"IDAT", zlib.compress(rows.tobytes())),
            (b"IEND", b""),
        ):
            file.write(struct.pack(">I", len(data)) + kind + data)
            file.write(struct.pack(">I", zlib.crc32(kind + data)))
