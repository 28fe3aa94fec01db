"""One record on its way out: arrays of a few rows become chunks, chunks become a seal."""

from __future__ import annotations

from collections import deque

import numpy as np

from routereplay.patches.vllm.origin import Origin
from routereplay.patches.vllm.parcel import Parcel
from routereplay.patches.vllm.record import Ending, RecordInfo
from routereplay.patches.vllm.watch import Watch
from routereplay.wire.codec import Codec, Dtype, dtype_of, write_rows
from routereplay.wire.digest import digest
from routereplay.wire.errors import InvalidRoutes
from routereplay.wire.frame import encode_frame
from routereplay.wire.records import Chunk, ChunkRef, ParentRef, RecordManifest, Seal
from routereplay.wire.routes import check_rows

_TOKENS_PER_STEP = 16_384
_CHUNKS_AT_FULL_PACE = 64


class Upload:
    """The exporter thread's side of a record.

    Args:
        info: what is known of the request.
        source: where the event loop puts the rows of each step; only appended to there and
            only taken from here, so neither side needs a lock.
        codec: how ids are written, where that is shorter than as they are.
    """

    def __init__(self, info: RecordInfo, source: deque[np.ndarray], codec: Codec = "raw") -> None:
        self.info = info
        model = info.model
        self._dtype: Dtype = dtype_of(codec, model.topk, model.num_experts)
        self.origin = Origin.of_info(info)
        self.lost: str | None = None
        """Why the record is lost; rows that still come are dropped."""
        self.waiting: deque[Parcel] = deque()
        """Frames that wait in memory."""
        self.spooled = 0
        """Chunks that are on disk; the seal must not overtake them."""
        self._row_nbytes = info.model.row_nbytes
        self._source = source
        self._seen_at: float | None = None
        self._framed_rows = 0
        self._refs: list[ChunkRef] = []
        self._watch = Watch(info.model)
        self.invalid: tuple[str, ...] = ()
        """Why the rows cannot be real; known once it is sealed."""

    @property
    def pending(self) -> bool:
        """Whether rows wait in the source."""
        return bool(self._source)

    def is_due(self, flush_bytes: int, flush_age_s: float, now: float) -> bool:
        """Whether the rows in the source should be framed: there are many, or they are old.

        Later and later for a request that lasts: the seal lists every chunk in a header of
        bounded size, and this keeps their number at the square root of the duration.
        """
        if not self._source:
            return False
        if self._seen_at is None:
            self._seen_at = now
        steps_nbytes = (len(self._source) - 1) * self._row_nbytes
        if self._source[0].nbytes + steps_nbytes >= flush_bytes:
            return True
        pace = max(1.0, len(self._refs) / _CHUNKS_AT_FULL_PACE)
        return now - self._seen_at >= flush_age_s * pace

    def take(self) -> list[np.ndarray]:
        """Empty the source: arrays of `[tokens, layers, topk]`, one for each engine step."""
        arrays = [self._source.popleft() for _ in range(len(self._source))]
        self._seen_at = None
        self.origin.rows += sum(map(len, arrays))
        return arrays

    def chunks(self, arrays: list[np.ndarray], chunk_bytes: int, now: float) -> list[Parcel]:
        """Frame arrays that were taken; raises `InvalidRoutes` if they cannot be the model's."""
        model = self.info.model
        # A prompt comes as one large array: it is sent as it is, in slices.
        rows_TLK = np.ascontiguousarray(arrays[0] if len(arrays) == 1 else self._join(arrays))
        self._check_shape(rows_TLK)
        step = max(chunk_bytes // self._row_nbytes, 1)
        parcels = []
        for start in range(0, len(rows_TLK), step):
            # All that is done with a chunk is done while it is in the cache.
            chunk_TLK = rows_TLK[start : start + step]
            check_rows(chunk_TLK, model.num_experts, self.info.client.request_id)
            self._watch.look(chunk_TLK)
            parcels.append(self._chunk(chunk_TLK, now))
        return parcels

    def seal(self, ending: Ending, now: float) -> Parcel:
        """Return the seal: manifest and token ids."""
        info, model = self.info, self.info.model
        tokens = np.concatenate(
            [*_int32(info.prompt_token_ids), *_int32(ending.completion_token_ids)]
        )
        self.invalid = self._watch.verdict(tokens[info.row_start :])
        manifest = RecordManifest(
            request_id=info.client.request_id,
            choice=info.client.choice,
            trajectory_id=info.trajectory_id,
            aliases=info.client.aliases,
            model=info.model_name,
            num_layers=model.num_layers,
            topk=model.topk,
            num_experts=model.num_experts,
            dtype=self._dtype,
            prompt_len=len(info.prompt_token_ids),
            completion_len=len(ending.completion_token_ids),
            row_start=info.row_start,
            parent=_parent_ref(info, tokens),
            rows=self._framed_rows,
            finish_reason=ending.finish_reason,
            open_ended=ending.open_ended,
            policy_versions=ending.policy_versions,
            invalid=self.invalid,
            engine_id=info.engine_id,
            ordinal=info.ordinal,
            started_at=info.started_at,
            chunks=tuple(self._refs),
            token_digest=digest(tokens.data),
        )
        header = Seal(upload_id=info.upload_id, manifest=manifest)
        return Parcel(self.origin, "seal", encode_frame(header, [_flat(tokens)]), now)

    def _join(self, arrays: list[np.ndarray]) -> np.ndarray:
        try:
            return np.concatenate(arrays, casting="no", dtype=arrays[0].dtype)
        except (ValueError, TypeError):  # One of them has another shape or dtype than the first.
            for rows_TLK in arrays:
                self._check_shape(rows_TLK)
            raise

    def _check_shape(self, rows_TLK: np.ndarray) -> None:
        model = self.info.model
        expected = (model.num_layers, model.topk)
        if rows_TLK.shape[1:] != expected or rows_TLK.dtype.name != model.dtype:
            msg = (
                f"{self.info.client.request_id}: vLLM returned routes {rows_TLK.shape} of "
                f"{rows_TLK.dtype}; expected [tokens, {model.num_layers}, {model.topk}] of "
                f"{model.dtype}"
            )
            raise InvalidRoutes(msg)

    def _chunk(self, rows_TLK: np.ndarray, now: float) -> Parcel:
        info, model = self.info, self.info.model
        payload = _flat(write_rows(rows_TLK, self._dtype, model.num_experts))
        ref = ChunkRef(len(rows_TLK), payload.nbytes, digest(payload))
        header = Chunk(
            upload_id=info.upload_id,
            request_id=info.client.request_id,
            choice=info.client.choice,
            trajectory_id=info.trajectory_id,
            aliases=info.client.aliases,
            seq=len(self._refs),
            first_row=self._framed_rows,
            rows=ref.rows,
            num_layers=model.num_layers,
            topk=model.topk,
            num_experts=model.num_experts,
            dtype=self._dtype,
            digest=ref.digest,
        )
        self._refs.append(ref)
        self._framed_rows += ref.rows
        buffers = encode_frame(header, [payload])
        return Parcel(self.origin, "chunk", buffers, now, ref.rows, rows_TLK.nbytes)


def _parent_ref(info: RecordInfo, tokens: np.ndarray) -> ParentRef | None:
    if info.parent is None:
        return None
    prefix = digest(tokens[: info.row_start].data)
    return ParentRef(**info.parent._asdict(), prefix_digest=prefix)


def _flat(array: np.ndarray) -> memoryview:
    # A view of a zero-sized array cannot be cast.
    return array.data.cast("B") if array.size else memoryview(b"")


def _int32(token_ids: list[int]) -> list[np.ndarray]:
    # In steps: converting a list holds the interpreter's lock, and a prompt can be long.
    return [
        np.array(token_ids[start : start + _TOKENS_PER_STEP], dtype="<i4")
        for start in range(0, len(token_ids), _TOKENS_PER_STEP)
    ]
