"""The typed headers that cross the network.

Every header is a `msgspec.Struct`, so decoding is typed and bounded: an attacker's
msgpack cannot build anything but these. Fields may be added with a default; readers
ignore fields they do not know.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from routereplay.wire.codec import Dtype, cell_nbytes, id_nbytes

FinishReason: TypeAlias = Literal["stop", "length", "abort", "error", "repetition", "other"]
TurnState: TypeAlias = Literal["sealed", "pending", "dropped"]


class PolicySpan(msgspec.Struct, frozen=True, gc=False):
    """Tokens `[start, stop)` of a request were processed by policy `version`."""

    version: str
    start: int
    stop: int


class ChunkRef(msgspec.Struct, frozen=True, gc=False):
    """One staged piece of a record: `rows` rows, `nbytes` bytes, BLAKE3-16 `digest`."""

    rows: int
    nbytes: int
    digest: bytes


class ParentRef(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The record that holds the rows before the first one of a delta.

    Of the same trajectory, or of the same request: another choice of it.
    """

    request_id: str
    choice: int
    upload_id: str
    """Pins the recording: an id that is used again is another parent."""
    prefix_digest: bytes
    """BLAKE3-16 of the int32 little-endian token ids `[0, row_start)`, the same in both."""


class RecordManifest(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What was recorded for one choice of one request. Immutable once sealed."""

    request_id: str
    """The `id` that the OpenAI client saw (`chatcmpl-...`, `cmpl-...`), normalised."""
    choice: int
    """`choices[i].index` of the response."""
    trajectory_id: str | None = None
    """From `X-Session-ID`, `session_id` or `vllm_xargs.trajectory_id`, normalised."""
    aliases: tuple[str, ...] = ()
    """Other ids under which the request is found: the client's own `X-Request-Id`."""

    model: str = ""
    num_layers: int
    """Decoder layers of the model; dense layers are all-zero planes."""
    topk: int
    num_experts: int
    dtype: Dtype
    """How ids are written. What a client returns is uint8 up to 256 experts, else uint16.
    `sorted` is the flag that the order of the ids of a cell was not recorded."""

    prompt_len: int
    completion_len: int
    row_start: int = 0
    """Token index of the first recorded row (`routed_experts_prompt_start`)."""
    parent: ParentRef | None = None
    """Where the rows `[0, row_start)` are; None if there are none, or the client asked to
    leave them out."""
    rows: int
    """Recorded rows; `prompt_len + completion_len - 1 - row_start` when complete."""

    finish_reason: FinishReason
    policy_versions: tuple[PolicySpan, ...] = ()
    engine_id: str = ""
    """The recorder process."""
    ordinal: int = 0
    """Position of the request among those of its trajectory that this engine saw, from 0."""
    started_at: float = 0.0
    """Unix seconds at which the engine accepted the request."""

    chunks: tuple[ChunkRef, ...]
    token_digest: bytes
    """BLAKE3-16 of the int32 little-endian token ids of prompt and completion."""

    invalid: tuple[str, ...] = ()
    """What the recorder saw in these rows that real routes never show (`zero_rows`,
    `stale_rows`, ...); empty if nothing. Such rows must not be replayed."""

    open_ended: bool = False
    """The completion may go on past what the client was given: the recorder saw what the engine
    sampled, and a front end beyond it decided where the text ends."""

    @property
    def row_nbytes(self) -> int:
        """Bytes of one token's row as it is written."""
        return self.num_layers * cell_nbytes(self.dtype, self.topk, self.num_experts)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and completion."""
        return self.prompt_len + self.completion_len

    @property
    def complete(self) -> bool:
        """Whether every token that was fed to the model has its row."""
        return self.rows == max(self.num_tokens - 1 - self.row_start, 0)


class Chunk(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="chunk", tag_field="kind"):
    """Ingest: rows `[first_row, first_row + rows)` of an upload. Payload: the rows, C order."""

    upload_id: str
    """The engine's own unique id of the request; two live requests never share it."""
    request_id: str
    choice: int
    trajectory_id: str | None = None
    seq: int
    """Position of the chunk in its upload, from 0."""
    first_row: int
    rows: int
    num_layers: int
    topk: int
    num_experts: int
    dtype: Dtype
    digest: bytes
    aliases: tuple[str, ...] = ()
    """As in the manifest, so that a request is found under them while it is pending."""

    @property
    def row_nbytes(self) -> int:
        """Bytes of one token's row as it is written."""
        return self.num_layers * cell_nbytes(self.dtype, self.topk, self.num_experts)

    @property
    def ids_nbytes(self) -> int:
        """Bytes of all rows as they were captured."""
        return self.rows * self.num_layers * self.topk * id_nbytes(self.num_experts)


class Seal(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="seal", tag_field="kind"):
    """Ingest: the upload is whole. Payload: the int32 token ids of prompt and completion."""

    upload_id: str
    manifest: RecordManifest
    orphan: bool = False
    """Seal it although its parent is not what the manifest says: its own rows are right."""


class Drop(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="drop", tag_field="kind"):
    """Ingest: the recorder lost this request. No payload."""

    upload_id: str
    request_id: str
    choice: int
    trajectory_id: str | None = None
    aliases: tuple[str, ...] = ()
    reason: str
    """`queue_full`, `store_unreachable`, `rejected`, `shutdown`, `internal_error`, ..."""
    rows: int = 0
    """Rows that were captured and are gone."""
    engine_id: str = ""
    ordinal: int = 0
    started_at: float = 0.0


class RowSource(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Rows `[token_start, token_start + rows)` of an item were recorded for this choice."""

    request_id: str
    choice: int
    token_start: int
    rows: int


class RoutesItem(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One record, or a slice of one, inside a `Routes` frame. Offsets are into its payload."""

    manifest: RecordManifest
    token_start: int
    """Token index of the first row sent."""
    rows: int
    layer_start: int
    layers: int
    rows_offset: int
    rows_nbytes: int
    rows_digest: bytes
    """BLAKE3-16 of the rows as sent. Empty: they are the manifest's chunks, whole and in order, and
    each is checked against its own digest, which the recorder made."""
    tokens_offset: int
    tokens_nbytes: int
    parent: int | None = None
    """In a trajectory: index, among its turns, of the turn that holds the rows before."""
    sources: tuple[RowSource, ...] = ()
    """Of a request that is a delta: whose rows these are, in order. Empty: all its own."""


class TurnStatus(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One request of a trajectory: what the store knows of it."""

    request_id: str
    choice: int
    state: TurnState
    reason: str = ""
    """Why it was dropped."""
    engine_id: str = ""
    ordinal: int = 0
    started_at: float = 0.0
    rows_lost: int = 0
    manifest: RecordManifest | None = None
    """Present once sealed."""


class FetchedTrajectory(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One trajectory of a `Routes` frame: its turns in order; items follow the sealed ones."""

    trajectory_id: str
    turns: tuple[TurnStatus, ...]
    items: tuple[int, ...]
    """Indices into `Routes.items`, one for each sealed turn, in the order of `turns`."""


class FetchFailure(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One id of a batch that could not be served."""

    id: str
    code: str
    message: str


class Routes(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="routes", tag_field="kind"):
    """Response: any number of records. Payload: their rows and token ids, each 64-aligned."""

    items: tuple[RoutesItem, ...]
    trajectories: tuple[FetchedTrajectory, ...] = ()
    failures: tuple[FetchFailure, ...] = ()


class RequestKey(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A request to fetch in a batch."""

    id: str
    choice: int = 0


class TrajectoryKey(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A trajectory to fetch in a batch, and what it must hold to be whole.

    The store cannot wait for a turn that it has not heard of unless it is told of it.
    """

    id: str
    turns: int = 0
    """Turns that it has at least; each choice of a request is one."""
    requests: tuple[str, ...] = ()
    """Ids of requests that are among its turns."""


class FetchRequest(msgspec.Struct, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=True):
    """JSON body of `POST /v1/fetch`; half-open ranges, `None` means all."""

    requests: tuple[RequestKey, ...] = ()
    trajectories: tuple[str | TrajectoryKey, ...] = ()
    layers: tuple[int, int] | None = None
    tokens: tuple[int, int] | None = None
    wait: float = 0.0
    """Seconds to wait for what is still pending."""


class FrameResult(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The store's answer to one ingested frame."""

    status: Literal["staged", "sealed", "replayed", "noted", "refused"]
    code: str = ""
    """Error code when refused."""
    message: str = ""


class IngestResult(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """JSON answer of `POST /v1/ingest`: one result for each frame, in order."""

    results: tuple[FrameResult, ...]


IngestHeader: TypeAlias = Chunk | Seal | Drop
Header: TypeAlias = Chunk | Seal | Drop | Routes
