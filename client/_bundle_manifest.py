"""`manifest.json` of a bundle: what is in it, typed, versioned and checked by digest."""

from __future__ import annotations

from pathlib import Path

import msgspec

from routereplay.client.errors import BundleNotFound
from routereplay.client.packed import ModelShape
from routereplay.wire.digest import digest
from routereplay.wire.errors import CorruptRecord, UnsupportedWireVersion

FORMAT = "routereplay.bundle"
BUNDLE_VERSION = 1
"""A reader refuses every other one by name. New optional fields do not change it."""

MANIFEST = "manifest.json"


class BundledTrajectory(msgspec.Struct, frozen=True):
    """Where the routes of one packed sequence come from."""

    trajectory_id: str
    policy_versions: tuple[str, ...] = ()
    """Of the weights that sampled it, in order; several if they changed on the way."""


class BatchManifest(msgspec.Struct, frozen=True, kw_only=True):
    """One batch of a bundle; its file is `file_name(index)`."""

    rows: int
    """Of the batch, padding included."""
    sequences: int | None = None
    """Packed sequences, None if the batch was saved without cu_seqlens."""
    token_digest: bytes
    """BLAKE3-16 over the int32 token ids of all rows that are not padding."""
    index_digest: bytes
    """BLAKE3-16 over all tensors of the file but the planes: it covers the block digests."""
    trajectories: tuple[BundledTrajectory, ...] = ()
    in_order: bool = True
    """Whether recorded rows hold their ids in vLLM's order."""


class BundleManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known of a bundle before its batches are read."""

    num_layers: int
    topk: int
    num_experts: int
    block_rows: int
    """Rows of a plane that one digest covers."""
    batches: tuple[BatchManifest, ...]

    @property
    def model(self) -> ModelShape:
        """The model whose routes these are."""
        return ModelShape(self.num_layers, self.topk, self.num_experts)


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    format: str
    version: int
    digest: bytes = b""
    manifest: msgspec.Raw = msgspec.Raw()


def file_name(index: int) -> str:
    """Return the name of the file of batch `index`, from 0."""
    return f"batch-{index:05d}.safetensors"


def encode_manifest(manifest: BundleManifest) -> bytes:
    """Return the bytes of manifest.json."""
    body = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    return msgspec.json.encode(
        _Envelope(
            format=FORMAT, version=BUNDLE_VERSION, digest=digest(body), manifest=msgspec.Raw(body)
        )
    )


def read_manifest(folder: Path) -> BundleManifest:
    """Return the manifest of the bundle in `folder`.

    Raises:
        BundleNotFound: there is none.
        UnsupportedWireVersion: it has another version.
        CorruptRecord: it is no manifest, or was changed.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        msg = (
            f"there is no replay bundle at {folder}: {MANIFEST} is missing. A bundle appears "
            "there whole, when ReplayBundle.save() returns; check the path, and that the "
            "saving job ended"
        )
        raise BundleNotFound(msg, path=str(folder)) from None
    try:
        envelope = msgspec.json.decode(content, type=_Envelope)
        if envelope.format != FORMAT:
            msg = f"{path}: format is {envelope.format!r}, expected {FORMAT!r}; is it a bundle?"
            raise CorruptRecord(msg)
        if envelope.version != BUNDLE_VERSION:
            msg = (
                f"{path}: bundle version {envelope.version}, this routereplay reads "
                f"{BUNDLE_VERSION}; read it with the version that saved it, or save it again"
            )
            raise UnsupportedWireVersion(msg, version=envelope.version)
        if digest(bytes(envelope.manifest)) != envelope.digest:
            msg = f"{path} was changed after it was saved; copy or save the bundle again"
            raise CorruptRecord(msg)
        return msgspec.json.decode(envelope.manifest, type=BundleManifest)
    except msgspec.MsgspecError as error:
        msg = f"{path} is no manifest of a bundle ({error}); copy or save the bundle again"
        raise CorruptRecord(msg) from error
