"""A training job that was given the path of a bundle: each rank reads its own part of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from routereplay.client.bundle import ReplayBundle
from routereplay.client.errors import MisalignedRoutes
from routereplay.client.packed import PackedRoutes
from routereplay.patches.models import RoutedModel
from routereplay.patches.replay.chunk import HostChunk
from routereplay.patches.replay.errors import ReplayMismatch


class BundledRoutes:
    """The bundle of a job, open on this rank.

    Args:
        path: of the folder.
        chunks: what the routes must fit.
        model: the model that was sampled, if it is known.

    Raises:
        BundleNotFound, UnsupportedWireVersion, CorruptRecord: see `ReplayBundle.open`.
        InvalidRoutes: the bundle is of another model.
        ReplayMismatch: the same, where only the host's model is known.
    """

    def __init__(
        self, path: str | os.PathLike[str], chunks: Sequence[HostChunk], model: RoutedModel | None
    ) -> None:
        self.path = Path(path)
        self._bundle = ReplayBundle.open(path, model=None if model is None else model.shape)
        for chunk in chunks:
            if chunk.layer_numbers:
                self._check(chunk)

    def packed(
        self, index: int, layer_idxs: Sequence[int], row_ids: torch.Tensor, token_ids: torch.Tensor
    ) -> PackedRoutes:
        """Return this rank's rows of batch `index`, in the order of its `input_ids`.

        Args:
            layer_idxs: 0-based decoder layers that are needed.
            row_ids: `[b, s_local]`, the flat row of the batch for each token of this rank.
            token_ids: `[b, s_local]`, those tokens.

        Raises:
            MisalignedRoutes: the bundle has another token at a row. Padding is not compared.
            CorruptRecord: what was read is not what was saved.
            IndexError: the bundle has no such batch or row.
        """
        rows = row_ids.reshape(-1).cpu().numpy()
        layers = range(min(layer_idxs), max(layer_idxs) + 1)
        packed = self._bundle.packed(index, layers=layers, rows=rows)
        self._check_tokens(index, rows, token_ids.reshape(-1).cpu().numpy(), packed.padding)
        return packed

    def _check(self, chunk: HostChunk) -> None:
        saved, routing = self._bundle.model, chunk.routing
        fits = (routing.topk, routing.num_experts) == (saved.topk, saved.num_experts)
        if not fits or max(routing.layer_idxs) >= saved.num_layers:
            msg = (
                f"{self.path} holds routes of {saved}, the model chooses {routing.topk} of "
                f"{routing.num_experts} experts on layers {list(routing.layer_idxs)} (0-based): "
                "the bundle was saved from another model"
            )
            raise ReplayMismatch(msg, bundle=str(self.path))

    def _check_tokens(
        self, index: int, rows: np.ndarray, tokens: np.ndarray, padding: np.ndarray
    ) -> None:
        where = f"{self.path}, batch {index}"
        if len(tokens) != len(rows):
            msg = f"{where}: {len(tokens)} token_ids and {len(rows)} row_ids; expected one of each"
            raise MisalignedRoutes(msg, batch=index)
        saved = self._bundle.token_ids(index)[rows]
        differs = np.flatnonzero((saved != tokens) & ~padding)
        if differs.size:
            first = int(differs[0])
            msg = (
                f"{where}: row {rows[first]} was saved for token {saved[first]}, this rank has "
                f"{tokens[first]} there ({differs.size} of {len(rows)} differ); begin the batches "
                "of this step in their order, and check row_ids"
            )
            raise MisalignedRoutes(msg, batch=index, row=int(rows[first]))
