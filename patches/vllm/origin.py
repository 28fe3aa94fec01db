"""Whose rows a frame carries: what a note of their loss must say."""

from __future__ import annotations

from dataclasses import dataclass

from routereplay.patches.vllm.record import RecordInfo
from routereplay.wire.records import Chunk, Drop, IngestHeader, Seal


@dataclass(eq=False, slots=True)
class Origin:
    """One choice of one request, known from its record or, on disk, from a frame's header."""

    upload_id: str
    request_id: str
    choice: int
    trajectory_id: str | None
    aliases: tuple[str, ...]
    engine_id: str = ""
    ordinal: int = 0
    started_at: float = 0.0
    rows: int = 0
    """Captured rows so far, as far as they are known here."""

    @classmethod
    def of_info(cls, info: RecordInfo) -> Origin:
        """Return the origin of a record of this process."""
        client = info.client
        return cls(
            *(info.upload_id, client.request_id, client.choice, info.trajectory_id),
            *(client.aliases, info.engine_id, info.ordinal, info.started_at),
        )

    @classmethod
    def of_header(cls, header: IngestHeader) -> Origin:
        """Return the origin of a frame."""
        about = header.manifest if isinstance(header, Seal) else header
        origin = cls(
            *(header.upload_id, about.request_id, about.choice),
            *(about.trajectory_id, about.aliases),
            rows=about.rows,
        )
        if not isinstance(about, Chunk):
            origin.engine_id, origin.ordinal = about.engine_id, about.ordinal
            origin.started_at = about.started_at
        return origin

    def drop(self, reason: str) -> Drop:
        """Return the header of a note that the record is lost."""
        return Drop(
            upload_id=self.upload_id,
            request_id=self.request_id,
            choice=self.choice,
            trajectory_id=self.trajectory_id,
            aliases=self.aliases,
            reason=reason,
            rows=self.rows,
            engine_id=self.engine_id,
            ordinal=self.ordinal,
            started_at=self.started_at,
        )
