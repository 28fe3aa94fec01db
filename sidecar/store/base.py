"""What the service needs of an engine: blobs by key, and an index that publishes them.

Two interfaces, so that hours of routes can go to a file system or an object store while
the index stays where an atomic step is cheap. Every method may raise `StoreUnavailable`
or `StoreFull`; both may be retried with the same arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from routereplay.wire.digest import Buffer
from routereplay.wire.records import RecordManifest

EntryState: TypeAlias = Literal["pending", "sealed", "dropped", "deleted"]
RecordState: TypeAlias = Literal["pending", "sealed", "dropped", "deleted", "expired"]
StageOutcome: TypeAlias = Literal[
    "staged", "replayed", "conflict", "deleted", "dropped", "too_many", "too_long"
]
SealOutcome: TypeAlias = Literal["sealed", "replayed", "conflict", "incomplete", "deleted"]

Sums: TypeAlias = Literal["blake3", "xxh3"]

NEVER_SEALED = "never_sealed"
"""Reason of a record whose upload was begun, not sealed, and outlived by its staging time."""


class RecordKey(NamedTuple):
    """Where a record lives: everything of a trajectory shares one `tag`."""

    tag: str
    request_id: str
    choice: int


class Pointer(NamedTuple):
    """Where an id or alias leads."""

    tag: str
    request_id: str


class Lead(NamedTuple):
    """A name, as `keys.name_of` makes it of an id in its namespace, and where it is to lead."""

    name: str
    pointer: Pointer


class Layout(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """How a chunk is kept: as values of whole rows, each a sequence of bands (`store.bands`)."""

    part_rows: int
    """Rows in each value of the chunk but the last."""
    bands: int = 1
    digests: bytes = b""
    """16 bytes for each band of each value, in order; none for a single band."""
    sums: Sums = "blake3"
    """What the digests of bands are; records of before there was a choice say nothing."""

    @property
    def has_quick_sums(self) -> bool:
        """Whether its bands are checked at less cost than the chunk by its own digest."""
        return self.bands > 1 and self.sums == "xxh3"


class StagedChunk(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What an upload has staged at one position, and how it was split into values."""

    first_row: int
    rows: int
    nbytes: int
    digest: bytes
    layout: Layout
    num_layers: int
    topk: int
    num_experts: int
    dtype: str


class Staging(NamedTuple):
    """A chunk that an upload brings at position `seq`."""

    key: RecordKey
    upload_id: str
    seq: int
    chunk: StagedChunk
    entry: Entry


class Entry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What the index remembers of a record beyond its life."""

    engine_id: str = ""
    ordinal: int = 0
    started_at: float = 0.0
    reason: str = ""
    rows_lost: int = 0


class StoredRecord(msgspec.Struct, frozen=True, gc=False):
    """A sealed record: its manifest and how its bytes were split into values."""

    manifest: RecordManifest
    upload_id: str
    layouts: tuple[Layout, ...]
    """For each chunk of the manifest."""
    token_part_bytes: int


class RecordStatus(NamedTuple):
    """What the index knows of one choice of one request; `record` is there while sealed."""

    key: RecordKey
    state: RecordState
    entry: Entry
    upload_id: str
    record: StoredRecord | None


class SealRequest(NamedTuple):
    """All that one atomic seal needs."""

    key: RecordKey
    record: StoredRecord
    content: bytes
    """Identity of the content: equal means a replay, different a conflict."""
    entry: Entry
    chunks: Sequence[StagedChunk]
    """What must be staged at positions 0, 1, ..."""
    blobs: Sequence[tuple[str, int]]
    """Key and bytes of every value of the record."""


class Wanted(NamedTuple):
    """A value, or a part of one, and the memory to receive it into."""

    key: str
    into: memoryview
    start: int | None = None
    """Where the part begins; None for the whole value."""


class Blobs(Protocol):
    """Values by key. A value never changes: its key holds the digest of its content."""

    async def put(self, values: Sequence[tuple[str, Buffer]], ttl_s: int) -> None:
        """Store values that live `ttl_s`; one that is there already stays and lives as long."""

    async def read(self, wanted: Sequence[Wanted]) -> list[int | None]:
        """Receive values or parts of them; return the length of each, or None if it is gone.

        Keys may be of many tags. What is not as long as its place was not received.
        """


class Index(Protocol):
    """States of records; the only place where something becomes visible."""

    async def stage(
        self, chunks: Sequence[Staging], leads: Sequence[Lead]
    ) -> tuple[list[StageOutcome], list[Pointer]]:
        """Note what uploads bring; the blobs are stored afterwards. Claim names for them.

        Returns what became of each chunk, and where each name leads now; see `claim`.
        """

    async def staged(self, tag: str, upload_id: str) -> dict[int, StagedChunk]:
        """Return what an upload has noted, by position."""

    async def so_far(
        self, key: RecordKey, upload_id: str
    ) -> tuple[bytes | None, dict[int, StagedChunk]]:
        """Return the content identity of a sealed record or None, and what is staged for it."""

    async def seal(self, request: SealRequest) -> SealOutcome:
        """Make a record visible, whole, in one atomic step; or change nothing.

        An index that shares its engine with the blobs checks that all of them are there,
        and gives them the record's life, in the same step.
        """

    async def drop(self, key: RecordKey, upload_id: str, entry: Entry) -> None:
        """Note that an upload is lost; a sealed record stays sealed."""

    async def delete(self, status: RecordStatus, blobs: Sequence[str]) -> None:
        """Remove a record and its blobs in one step and remember that it was deleted."""

    async def claim(self, leads: Sequence[Lead]) -> list[Pointer]:
        """Let names lead where they are to; return where each leads.

        One that leads to a sealed record already stays with it.
        """

    async def locate(self, name: str) -> Pointer | None:
        """Return where a name leads."""

    async def named(self, name: str) -> list[RecordStatus]:
        """Return the status of every choice of the request that a name leads to, if to any."""

    async def ahead(
        self, names: Sequence[str], tags: Sequence[str]
    ) -> dict[str, list[RecordStatus]]:
        """Return what `named` and `trajectory` would of these, if that is cheaper than one by one.

        What is missing in the answer is to be asked for by itself, and raises what it raises.
        """

    async def request(self, pointer: Pointer) -> list[RecordStatus]:
        """Return the status of every choice of a request, in order of choice."""

    async def trajectory(self, tag: str) -> list[RecordStatus]:
        """Return the status of everything under a tag, in order of start."""
