"""`ReplayBundle`: the packed batches of a training step, on disk for every rank.

ReplayBundle.save(path, batches, model=model)                       # one process, once
bundle = ReplayBundle.open(path, model=model)                       # each rank
packed = bundle.packed(microbatch, layers=range(24, 36))            # its layers, its rows

| in the folder          | what                                                            |
|------------------------|-----------------------------------------------------------------|
| manifest.json          | version, model, and of each batch: size, digests, trajectories  |
| batch-00000.safetensors| `experts [layers, rows, topk]`, masks, token ids, block digests |

Nothing in it speaks of ranks, so it is replayed on any layout. Planes are layer-major:
the layers of a pipeline stage are one range of bytes, and the rest is never read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from routereplay.client._bundle_file import BatchFile
from routereplay.client._bundle_layout import Layout, layout_of
from routereplay.client._bundle_manifest import BundleManifest, file_name, read_manifest
from routereplay.client._bundle_saving import BundleBatch, write_bundle
from routereplay.client.errors import MisalignedRoutes
from routereplay.client.packed import ModelShape, PackedRoutes
from routereplay.wire.errors import InvalidRoutes


class ReplayBundle:
    """Packed batches of one model on disk. Made by `save` and `open`.

    What a rank asks for is compared with its digest when it is first read. The folder
    must not be changed while it is open.
    """

    def __init__(self, folder: Path, manifest: BundleManifest) -> None:
        self.path = folder
        self.manifest = manifest
        self._files: dict[int, BatchFile] = {}

    @classmethod
    def save(
        cls, path: str | os.PathLike[str], batches: Iterable[BundleBatch], *, model: ModelShape
    ) -> ReplayBundle:
        """Write `batches` to the new folder `path` and open it.

        The folder appears whole or not at all: it is written under another name beside
        `path`, brought to the disk and renamed. A process that dies leaves only
        `.<name>.<hex>.partial`, which nobody reads.

        Args:
            path: must not exist; its parent must.
            batches: at least one, taken one by one.
            model: what all of them were recorded from.

        Raises:
            InvalidRoutes: a batch is not of this model, or lacks layers.
            ValueError: a batch contradicts itself.
            FileExistsError: `path` exists.
        """
        folder = Path(path).absolute()
        return cls(folder, write_bundle(folder, batches, model))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        model: ModelShape | None = None,
        token_ids: Sequence[npt.ArrayLike] | None = None,
    ) -> ReplayBundle:
        """Open the bundle at `path`; no route is read yet.

        Args:
            model: raises unless the bundle is of this model.
            token_ids: one array for each batch, `[rows]`: raises unless the bundle was
                saved for these tokens. See `check_tokens`.

        Raises:
            BundleNotFound: nothing is there.
            UnsupportedWireVersion: it was saved by another version of the format.
            CorruptRecord: it was cut, changed, or is not complete.
            InvalidRoutes: it is of another model.
            MisalignedRoutes: it is for other tokens.
        """
        folder = Path(path)
        bundle = cls(folder, read_manifest(folder))
        if model is not None and bundle.model != model:
            msg = (
                f"{folder} holds routes of {bundle.model}, the trainer has {model}: open the "
                "bundle that was saved from the model that is trained"
            )
            raise InvalidRoutes(msg, found=list(bundle.model), expected=list(model))
        for index in range(len(bundle)):
            BatchFile.check_size(folder / file_name(index), bundle._layout(index))
        if token_ids is not None:
            if len(token_ids) != len(bundle):
                msg = f"{folder} holds {len(bundle)} batches, token_ids are of {len(token_ids)}"
                raise MisalignedRoutes(msg, found=len(bundle), expected=len(token_ids))
            for index, tokens in enumerate(token_ids):
                bundle.check_tokens(index, tokens)
        return bundle

    def __len__(self) -> int:
        return len(self.manifest.batches)

    def __repr__(self) -> str:
        return f"ReplayBundle({str(self.path)!r}, {len(self)} batches, {self.model})"

    @property
    def model(self) -> ModelShape:
        """The model whose routes these are."""
        return self.manifest.model

    def packed(
        self, index: int, *, layers: range | None = None, rows: slice | npt.ArrayLike | None = None
    ) -> PackedRoutes:
        """Return batch `index`, or the part of it that a rank needs, ready for replay.

        Args:
            index: 0-based batch.
            layers: 0-based decoder layers without a gap; by default all.
            rows: rows without a gap, or `[n]` integers: single rows in their order, as
                context parallelism deals them. Row i of the result is the ith of them.

        Returns:
            A copy with experts `[rows, layers, topk]`, C-contiguous.

        Raises:
            CorruptRecord: what was read is not what was saved.
            IndexError: there is no such batch, layer or row.
        """
        file, chosen = self._file(index), self._layers(layers)
        if rows is None or isinstance(rows, slice):
            rows = self._rows(index, rows)
            planes_LNK = file.planes(chosen, rows)
        else:
            rows = self._row_ids(index, rows)
            planes_LNK = file.gathered(chosen, rows)
        return PackedRoutes(
            experts=np.ascontiguousarray(planes_LNK.transpose(1, 0, 2)),
            live=file.live[rows].copy(),
            padding=file.padding[rows].copy(),
            num_experts=self.model.num_experts,
            layer_start=chosen.start,
            in_order=self.manifest.batches[index].in_order,
        )

    def planes(
        self, index: int, *, layers: range | None = None, rows: slice | None = None
    ) -> np.ndarray:
        """Return `[layers, rows, topk]` of batch `index` as a read-only view of the file.

        Nothing is copied. Arguments and errors are those of `packed`.
        """
        return self._file(index).planes(self._layers(layers), self._rows(index, rows))

    def token_ids(self, index: int) -> np.ndarray:
        """Return the token ids of batch `index`, `[rows]` int32, read-only."""
        return self._file(index).token_ids

    def cu_seqlens(self, index: int) -> np.ndarray | None:
        """Return the bounds of the packed sequences, `[sequences + 1]` int64, if saved."""
        return self._file(index).cu_seqlens

    def check_tokens(self, index: int, token_ids: npt.ArrayLike) -> None:
        """Raise `MisalignedRoutes` unless batch `index` was saved for these tokens.

        Args:
            token_ids: one for each row; padding rows are not compared.
        """
        file, where = self._file(index), f"{self.path}, batch {index}"
        tokens = np.asarray(token_ids).reshape(-1)
        if len(tokens) != len(file.token_ids):
            msg = (
                f"{where} was saved for {len(file.token_ids)} rows, the trainer has "
                f"{len(tokens)}: pack the batch as it was packed when it was saved"
            )
            raise MisalignedRoutes(msg, batch=index)
        differs = np.flatnonzero((tokens != file.token_ids) & ~file.padding)
        if differs.size:
            position = int(differs[0])
            msg = (
                f"{where} was saved for other tokens: position {position} has token "
                f"{file.token_ids[position]}, the trainer has {tokens[position]} ({differs.size} "
                "differ); open the bundle of this step, and its batches in their order"
            )
            raise MisalignedRoutes(msg, batch=index, position=position)

    def _file(self, index: int) -> BatchFile:
        index = range(len(self))[index]
        if index not in self._files:
            self._files[index] = BatchFile(
                self.path / file_name(index),
                self._layout(index),
                self.manifest.batches[index].index_digest,
                self.manifest.block_rows,
            )
        return self._files[index]

    def _layout(self, index: int) -> Layout:
        batch = self.manifest.batches[index]
        return layout_of(self.model, batch.rows, batch.sequences, self.manifest.block_rows)

    def _layers(self, layers: range | None) -> range:
        everything = range(self.model.num_layers)
        if layers is None:
            return everything
        if not layers or layers.step != 1 or layers[0] < 0 or layers[-1] not in everything:
            msg = f"layers {layers} of {everything}: expected a part of it without gaps"
            raise IndexError(msg)
        return layers

    def _rows(self, index: int, rows: slice | None) -> slice:
        total = self.manifest.batches[index].rows
        start, stop, step = (rows or slice(None)).indices(total)
        if step != 1:
            msg = f"rows {rows}: a slice has no gaps; name single rows by an array"
            raise IndexError(msg)
        return slice(start, max(start, stop))

    def _row_ids(self, index: int, rows: npt.ArrayLike) -> np.ndarray:
        total = self.manifest.batches[index].rows
        ids = np.asarray(rows)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            msg = f"rows of shape {ids.shape} and dtype {ids.dtype}; expected [n] integers"
            raise IndexError(msg)
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= total):
            msg = f"rows {int(ids.min())} to {int(ids.max())} of a batch with rows 0 to {total - 1}"
            raise IndexError(msg)
        return ids.astype(np.int64)
