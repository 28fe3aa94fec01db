"""What is stored and fetched: routes of the true shape of Qwen3-30B-A3B, drawn at random."""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass

import numpy as np

from routereplay.patches.vllm.identity import ClientId
from routereplay.patches.vllm.record import Ending, ModelFacts, RecordInfo
from routereplay.patches.vllm.upload import Upload
from routereplay.wire.digest import Buffer

QWEN3 = ModelFacts("qwen3-30b-a3b", num_layers=48, topk=8, num_experts=128)
ROW_NBYTES = QWEN3.row_nbytes
CHUNK_BYTES = 1024 * 1024
SEED = 20251125


@dataclass(frozen=True)
class Turn:
    """One request of a trajectory as the recorder sees it: its new rows and all its tokens."""

    rows: np.ndarray
    """`[new tokens, layers, topk]` uint8."""
    row_start: int
    tokens: list[int]
    """Prompt and completion."""


def routes(rows: int, seed: int = SEED) -> np.ndarray:
    """Return `[rows, layers, topk]` uint8."""
    shape = (rows, QWEN3.num_layers, QWEN3.topk)
    return np.random.default_rng(seed).integers(0, QWEN3.num_experts, shape, dtype=np.uint8)


def conversation(turns: int, new_tokens: int, seed: int = SEED) -> list[Turn]:
    """Return turns that each bring `new_tokens` rows, as a recorder sends only new rows."""
    draw = np.random.default_rng(seed)
    made: list[Turn] = []
    tokens: list[int] = draw.integers(0, 150_000, 1).tolist()
    row_start = 0
    for _ in range(turns):
        tokens = tokens + draw.integers(0, 150_000, new_tokens).tolist()
        made.append(Turn(routes(new_tokens, int(draw.integers(1 << 30))), row_start, tokens))
        row_start += new_tokens
    return made


def fresh_id(kind: str) -> str:
    """Return an id that no earlier round used: what is stored already would be a replay."""
    return f"{kind}-{uuid.uuid4().hex}"


def frames(turn: Turn, request_id: str, trajectory_id: str | None) -> list[list[Buffer]]:
    """Return the frames that the recorder makes of a turn; checks and digests are part of it."""
    info = RecordInfo(
        upload_id=f"u-{request_id}",
        client=ClientId(request_id, 0, ()),
        trajectory_id=trajectory_id,
        model=QWEN3,
        model_name=QWEN3.name,
        prompt_token_ids=turn.tokens,
        row_start=turn.row_start,
        engine_id="bench",
        ordinal=0,
        started_at=float(turn.row_start + 1),
    )
    upload = Upload(info, deque([turn.rows]))
    parcels = upload.chunks(upload.take(), CHUNK_BYTES, 0.0)
    parcels.append(upload.seal(Ending([], "stop", ()), 0.0))
    return [parcel.buffers for parcel in parcels]
