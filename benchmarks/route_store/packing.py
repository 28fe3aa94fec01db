"""Bytes and CPU of the ways to write ids: `python -m route_store.packing`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import get_args

import numpy as np

from routereplay.wire import Codec, dtype_for, dtype_of, numpy_dtype, read_rows, write_rows

MODELS = {
    "OLMoE": (64, 8),
    "gpt-oss-120b": (128, 4),
    "Qwen3-30B-A3B": (128, 8),
    "GLM-4.5": (160, 8),
    "DeepSeek-V3": (256, 8),
    "Kimi-K2": (384, 8),
    "Qwen3-Next": (512, 10),
}
"""Experts and top-k."""
_SHAPE = 8192, 48
_TIMES = 9


def main() -> None:
    """Print a row for each model and codec that makes its rows shorter."""
    print("| model | experts, top-k | codec | bytes of a cell | x raw | write | read |")
    print("|---|---|---|---|---|---|---|")
    for name, (experts, topk) in MODELS.items():
        dtype = numpy_dtype(dtype_for(experts))
        rows = np.random.default_rng(1).integers(0, experts, (*_SHAPE, topk)).astype(dtype)
        for codec in get_args(Codec):
            _print_row(name, codec, rows, experts)


def _print_row(name: str, codec: Codec, rows: np.ndarray, experts: int) -> None:
    topk = rows.shape[2]
    dtype = dtype_of(codec, topk, experts)
    if dtype != codec:
        return
    written = write_rows(rows, dtype, experts)
    write = _cpu(lambda: write_rows(rows, dtype, experts))
    read = _cpu(lambda: read_rows(written.data.cast("B"), dtype, _SHAPE[1], topk, experts))
    cost = f"{write / rows.nbytes * 1e9:.2f} | {read / rows.nbytes * 1e9:.2f}"
    shape = f"{experts}, {topk} | {codec} | {written.shape[2]} | {written.nbytes / rows.nbytes:.3f}"
    print(f"| {name} | {shape} | {cost} |")


def _cpu(work: Callable[[], object]) -> float:
    spent = []
    for _ in range(_TIMES):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


if __name__ == "__main__":
    main()
