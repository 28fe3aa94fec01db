"""One POST to the store and what its answer means."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

import httpx
import msgspec

from routereplay.patches.vllm.settings import KIB, Settings
from routereplay.wire.digest import Buffer
from routereplay.wire.records import FrameResult, IngestResult
from routereplay.wire.version import MEDIA_TYPE

_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_WRITE_BYTES = 256 * KIB
_RETRY_AFTER_MAX_S = 60.0


class Answered(NamedTuple):
    """The store looked at every frame; one result for each, in order."""

    results: tuple[FrameResult, ...]


class Refused(NamedTuple):
    """The store refused the whole POST and would refuse it again."""

    code: str
    message: str


class Unavailable(NamedTuple):
    """No answer, or one that asks to come again."""

    why: str
    retry_after_s: float


Outcome: TypeAlias = Answered | Refused | Unavailable


class Sender:
    """A keep-alive connection to `POST /v1/ingest`; used by one thread."""

    def __init__(self, settings: Settings) -> None:
        parts = urlsplit(settings.store_url)
        is_socket = parts.scheme == "unix"
        headers = {"Content-Type": MEDIA_TYPE}
        if settings.api_key:
            headers["Authorization"] = f"Bearer {settings.api_key}"
        self._client = httpx.Client(
            base_url="http://routereplay" if is_socket else settings.store_url,
            transport=httpx.HTTPTransport(uds=parts.path) if is_socket else None,
            headers=headers,
            timeout=httpx.Timeout(settings.request_timeout_s, connect=settings.connect_timeout_s),
            # A proxy of the environment must not see routes, nor a redirect move them.
            trust_env=False,
            follow_redirects=False,
        )

    def post(self, frames: Sequence[Sequence[Buffer]]) -> Outcome:
        """Send whole frames, in order, without joining them to one body."""
        length = sum(memoryview(part).nbytes for frame in frames for part in frame)
        try:
            response = self._client.post(
                "/v1/ingest", content=_pieces(frames), headers={"Content-Length": str(length)}
            )
        except httpx.HTTPError as error:
            return Unavailable(f"{type(error).__name__}: {error}", 0.0)
        return _outcome(response, len(frames))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class Backoff:
    """Exponential backoff with full jitter (AWS Architecture Blog, 2015)."""

    def __init__(self, first_s: float = 0.2, longest_s: float = 30.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._failures = 0
        self._random = random.Random()

    def reset(self) -> None:
        """The store answered."""
        self._failures = 0

    def next_delay_s(self, at_least_s: float) -> float:
        """Return how long to wait after one more failure, never less than the store asked."""
        ceiling = min(self._longest_s, self._first_s * 2 ** min(self._failures, 16))
        self._failures += 1
        return max(self._random.uniform(0, ceiling), at_least_s)


def _pieces(frames: Sequence[Sequence[Buffer]]) -> Iterator[bytes]:
    # httpcore copies what a socket did not take at once; small pieces keep that copy small.
    for frame in frames:
        for part in frame:
            view = memoryview(part)
            for start in range(0, view.nbytes, _WRITE_BYTES):
                yield bytes(view[start : start + _WRITE_BYTES])


def _outcome(response: httpx.Response, frames: int) -> Outcome:
    status = response.status_code
    if status in _RETRYABLE or status >= 500:
        return Unavailable(f"HTTP {status}", _retry_after_s(response))
    try:
        results = msgspec.json.decode(response.content, type=IngestResult).results
    except msgspec.DecodeError:
        results = ()
    if len(results) == frames:
        return Answered(results)
    if 400 <= status < 500:
        return Refused(_code(response), response.text[:200])
    # Something that is not the store answered in its place: a proxy, another service.
    return Unavailable(f"HTTP {status} without a result for each of {frames} frames", 0.0)


def _code(response: httpx.Response) -> str:
    try:
        code = msgspec.json.decode(response.content, type=dict[str, object]).get("code")
    except msgspec.DecodeError:
        code = None
    return code if isinstance(code, str) else f"http_{response.status_code}"


def _retry_after_s(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), _RETRY_AFTER_MAX_S) if text.isdigit() else 0.0
