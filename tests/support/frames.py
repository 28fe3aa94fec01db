"""What a recorder sends: whole uploads with random routes, as frames."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np

from routereplay.wire import (
    Chunk,
    ChunkRef,
    Codec,
    Drop,
    ParentRef,
    PolicySpan,
    RecordManifest,
    Seal,
    digest,
    dtype_of,
    frame_bytes,
    write_rows,
)


@dataclass(frozen=True)
class Upload:
    """One choice of one request as a recorder holds it."""

    upload_id: str
    manifest: RecordManifest
    experts: np.ndarray
    """`[rows, layers, topk]`; as sent, `[rows, layers, bytes of a cell]`, unless raw."""
    token_ids: np.ndarray
    """`[prompt_len + completion_len]` int32."""

    @property
    def chunk_frames(self) -> list[bytes]:
        """Its chunks in order, one frame each."""
        return [self.chunk_frame(seq) for seq in range(len(self.manifest.chunks))]

    @property
    def seal_frame(self) -> bytes:
        return self.seal()

    def seal(self, *, orphan: bool = False) -> bytes:
        header = Seal(upload_id=self.upload_id, manifest=self.manifest, orphan=orphan)
        return frame_bytes(header, [self.token_ids.data])

    @property
    def body(self) -> bytes:
        """Everything in one ingest body."""
        return b"".join([*self.chunk_frames, self.seal_frame])

    def chunk_rows(self, seq: int) -> np.ndarray:
        first = sum(ref.rows for ref in self.manifest.chunks[:seq])
        return self.experts[first : first + self.manifest.chunks[seq].rows]

    def chunk_header(self, number: int, /, **changes: object) -> Chunk:
        manifest = self.manifest
        ref = manifest.chunks[number]
        header = Chunk(
            upload_id=self.upload_id,
            request_id=manifest.request_id,
            choice=manifest.choice,
            trajectory_id=manifest.trajectory_id,
            seq=number,
            first_row=sum(chunk.rows for chunk in manifest.chunks[:number]),
            rows=ref.rows,
            num_layers=manifest.num_layers,
            topk=manifest.topk,
            num_experts=manifest.num_experts,
            dtype=manifest.dtype,
            digest=ref.digest,
            aliases=manifest.aliases,
        )
        return msgspec.structs.replace(header, **changes)

    def chunk_frame(self, number: int, /, **changes: object) -> bytes:
        return frame_bytes(self.chunk_header(number, **changes), [self.chunk_rows(number).data])

    def drop_frame(self, reason: str = "queue_full") -> bytes:
        manifest = self.manifest
        return frame_bytes(
            Drop(
                upload_id=self.upload_id,
                request_id=manifest.request_id,
                choice=manifest.choice,
                trajectory_id=manifest.trajectory_id,
                aliases=manifest.aliases,
                reason=reason,
                rows=manifest.rows,
                engine_id=manifest.engine_id,
                ordinal=manifest.ordinal,
                started_at=manifest.started_at,
            )
        )

    def changed(self, **manifest: object) -> Upload:
        """The same upload with another manifest."""
        return replace(self, manifest=msgspec.structs.replace(self.manifest, **manifest))


def make_upload(
    request_id: str,
    *,
    seed: int = 0,
    choice: int = 0,
    trajectory_id: str | None = None,
    token_ids: np.ndarray | None = None,
    prompt_len: int = 20,
    completion_len: int = 13,
    row_start: int = 0,
    num_layers: int = 4,
    topk: int = 2,
    num_experts: int = 60,
    chunk_rows: int = 10,
    upload_id: str | None = None,
    codec: Codec = "raw",
    **manifest: object,
) -> Upload:
    """A complete upload whose rows and token ids are drawn from `seed`."""
    draw = np.random.default_rng(seed)
    if token_ids is None:
        token_ids = draw.integers(0, 1000, prompt_len + completion_len)
    tokens = np.asarray(token_ids, "<i4")
    rows = len(tokens) - 1 - row_start
    ids = draw.integers(0, num_experts, (rows, num_layers, topk))
    dtype = dtype_of(codec, topk, num_experts)
    experts = write_rows(ids.astype("u1" if num_experts <= 256 else "<u2"), dtype, num_experts)
    pieces = [experts[at : at + chunk_rows] for at in range(0, rows, chunk_rows)]
    fields = {"policy_versions": (PolicySpan("7", 0, len(tokens)),), "started_at": 1000.0 + seed}
    return Upload(
        upload_id or f"{choice}_{request_id}-{seed}",
        RecordManifest(
            request_id=request_id,
            choice=choice,
            trajectory_id=trajectory_id,
            model="tiny",
            num_layers=num_layers,
            topk=topk,
            num_experts=num_experts,
            dtype=dtype,
            prompt_len=len(tokens) - completion_len,
            completion_len=completion_len,
            row_start=row_start,
            rows=rows,
            finish_reason="stop",
            chunks=tuple(ChunkRef(len(p), p.nbytes, digest(p.data)) for p in pieces),
            token_digest=digest(tokens.data),
            **{**fields, **manifest},
        ),
        experts,
        tokens,
    )


def delta_on(parent: Upload, row_start: int, extra: int = 9, **fields: object) -> Upload:
    """A record whose prompt begins as the parent's tokens and whose rows begin at `row_start`."""
    seed = int(fields.setdefault("seed", parent.manifest.ordinal + 1000))
    more = np.random.default_rng(seed).integers(0, 1000, extra)
    tokens = np.concatenate([parent.token_ids[: row_start + 1], more]).astype("<i4")
    fields.setdefault("trajectory_id", parent.manifest.trajectory_id)
    fields.setdefault("ordinal", parent.manifest.ordinal + 1)
    fields.setdefault("started_at", parent.manifest.started_at + 1)
    fields.setdefault("completion_len", 3)
    fields.setdefault("parent", parent_ref(parent, tokens[:row_start]))
    fields.setdefault("request_id", f"{parent.manifest.request_id}+")
    return make_upload(token_ids=tokens, row_start=row_start, **fields)


def parent_ref(parent: Upload, prefix: np.ndarray) -> ParentRef:
    return ParentRef(
        request_id=parent.manifest.request_id,
        choice=parent.manifest.choice,
        upload_id=parent.upload_id,
        prefix_digest=digest(np.ascontiguousarray(prefix, "<i4").data),
    )


def make_conversation(trajectory_id: str, turns: int = 3, seed: int = 0) -> list[Upload]:
    """Turns that each extend the one before; every turn has rows for its whole prompt."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, 1000, 12)
    uploads = []
    for turn in range(turns):
        tokens = np.concatenate([tokens, draw.integers(0, 1000, 8)])
        uploads.append(
            make_upload(
                f"{trajectory_id}-turn-{turn}",
                seed=seed + turn,
                trajectory_id=trajectory_id,
                token_ids=tokens,
                completion_len=5,
                ordinal=turn,
            )
        )
        tokens = np.concatenate([tokens, draw.integers(0, 1000, 3)])
    return uploads
