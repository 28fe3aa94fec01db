"""`RoutedExperts`: the array every house hands to the next, and what makes it valid.

Shape legend: T tokens, L layers, K topk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from routereplay.wire.errors import InvalidRoutes
from routereplay.wire.records import RecordManifest, RowSource

DtypeName: TypeAlias = Literal["uint8", "uint16"]

_LITTLE_ENDIAN: dict[str, np.dtype[np.unsignedinteger]] = {
    "uint8": np.dtype("u1"),
    "uint16": np.dtype("<u2"),
}


def dtype_for(num_experts: int) -> DtypeName:
    """Return the dtype vLLM uses for ids below `num_experts`: uint8 up to 256, else uint16."""
    return "uint8" if num_experts <= 256 else "uint16"


def numpy_dtype(name: str) -> np.dtype[np.unsignedinteger]:
    """Return the little-endian numpy dtype of a wire dtype name, or raise `InvalidRoutes`."""
    try:
        return _LITTLE_ENDIAN[name]
    except KeyError:
        msg = f"dtype {name!r} is not one that routes come in; expected uint8 or uint16"
        raise InvalidRoutes(msg) from None


def check_rows(rows_TLK: np.ndarray, num_experts: int, where: str) -> None:
    """Raise `InvalidRoutes` unless `rows_TLK` is `[tokens, layers, topk]` with valid ids.

    Distinctness inside a row is not checked here: dense layers are all-zero planes
    and only a reader that knows the model can tell them apart.
    """
    dtype = rows_TLK.dtype
    if rows_TLK.ndim != 3 or dtype.kind != "u" or dtype.itemsize > 2:
        msg = (
            f"{where}: routes have shape {rows_TLK.shape} and dtype {dtype}; "
            "expected [tokens, layers, topk] of uint8 or uint16"
        )
        raise InvalidRoutes(msg)
    highest = int(rows_TLK.max(initial=0))
    if highest >= num_experts:
        msg = f"{where}: expert id {highest} in a model of {num_experts} experts"
        raise InvalidRoutes(msg, highest=highest, num_experts=num_experts)


@dataclass(frozen=True, eq=False, slots=True)
class RoutedExperts:
    """The experts that vLLM executed for one choice of one request, or a slice of them.

    Row j of the full record belongs to *input* token j of `prompt + completion`: there
    is no shift against `input_ids`. The last sampled token was never fed to the model
    and has no row; the next turn's prompt supplies it.
    """

    experts: np.ndarray
    """`[tokens, layers, topk]`, uint8 up to 256 experts else uint16, logical ids, read-only."""

    manifest: RecordManifest
    """What was recorded: ids, sizes, model, policy versions, digests."""

    token_ids: np.ndarray
    """`[prompt_len + completion_len]` int32: every token of the request, whatever the slice."""

    token_start: int = 0
    """Index in `token_ids` of row 0 of `experts`."""

    layer_start: int = 0
    """0-based decoder layer of plane 0 of `experts`."""

    parent: int | None = None
    """In a trajectory: index of the turn that holds the rows before `token_start`."""

    sources: tuple[RowSource, ...] = ()
    """Of a request that is a delta: for which records its rows were captured; empty: for it."""

    @property
    def token_stop(self) -> int:
        """Index in `token_ids` one past the last row."""
        return self.token_start + len(self.experts)

    @property
    def in_order(self) -> bool:
        """Whether the ids of a row are in the order in which vLLM ranked them.

        If not, they rise: the recorder sent which they are, and not their order.
        """
        return self.manifest.dtype != "sorted"

    @property
    def prompt_token_ids(self) -> np.ndarray:
        """`[prompt_len]` int32."""
        return self.token_ids[: self.manifest.prompt_len]

    @property
    def completion_token_ids(self) -> np.ndarray:
        """`[completion_len]` int32."""
        return self.token_ids[self.manifest.prompt_len :]

    def __repr__(self) -> str:
        tokens, layers, topk = self.experts.shape
        return (
            f"RoutedExperts({self.manifest.request_id!r}, choice={self.manifest.choice}, "
            f"tokens={self.token_start}:{self.token_stop} of {len(self.token_ids)}, "
            f"layers={self.layer_start}:{self.layer_start + layers}, topk={topk}, "
            f"{self.experts.dtype}, {tokens * layers * topk * self.experts.itemsize} bytes)"
        )
