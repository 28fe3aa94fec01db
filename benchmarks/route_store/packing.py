"""CPU seconds a gigabyte of ids for packing and unpacking them: `python -m route_store.packing`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from routereplay.wire import bitpack, dtype_for, numpy_dtype, read_rows

MODELS = {
    "OLMoE": (64, 8),
    "Qwen3-30B-A3B": (128, 8),
    "GLM-4.5": (160, 8),
    "Kimi-K2": (384, 8),
    "Qwen3-Next": (512, 10),
}
"""Experts and top-k."""
_SHAPE = 8192, 48
_TIMES = 9


def main() -> None:
    """Print a row for each model that packing makes shorter."""
    print("| model | experts, top-k | bytes, x raw | pack | unpack |\n|---|---|---|---|---|")
    for name, (experts, topk) in MODELS.items():
        dtype = numpy_dtype(dtype_for(experts))
        rows = np.random.default_rng(1).integers(0, experts, (*_SHAPE, topk)).astype(dtype)
        packed = bitpack(rows, experts)
        if packed.nbytes >= rows.nbytes:
            print(f"| {name} | {experts}, {topk} | no shorter | | |")
            continue
        pack = _cpu(lambda rows=rows, n=experts: bitpack(rows, n))
        unpack = _cpu(
            lambda data=packed.data, k=topk, n=experts: read_rows(data, "bitpack", _SHAPE[1], k, n)
        )
        cost = f"{pack / rows.nbytes * 1e9:.2f} | {unpack / rows.nbytes * 1e9:.2f}"
        ratio = packed.nbytes / rows.nbytes
        print(f"| {name} | {experts}, {topk} | {ratio:.3f} | {cost} |")


def _cpu(work: Callable[[], object]) -> float:
    spent = []
    for _ in range(_TIMES):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


if __name__ == "__main__":
    main()
