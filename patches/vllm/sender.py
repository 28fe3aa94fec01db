"""One POST to the store and what its answer means."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

import httpx
import msgspec

from routereplay.patches.vllm.settings import KIB, MIB, Settings
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import UnsupportedWireVersion
from routereplay.wire.records import FrameResult, IngestResult
from routereplay.wire.version import MEDIA_TYPE

_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_PATH = "/v1/ingest"
_MAX_ANSWER_BYTES = 4 * MIB
_NOT_US = frozenset({401, 403})
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


class Withheld(NamedTuple):
    """The store does not talk to this recorder: a wrong key, another release.

    Somebody has to change a setting, and until then the bytes are as good as ever.
    """

    code: str
    message: str


Outcome: TypeAlias = Answered | Refused | Unavailable | Withheld


class Sender:
    """A keep-alive connection to `POST /v1/ingest`; used by one thread."""

    def __init__(self, settings: Settings) -> None:
        parts = urlsplit(settings.store_url)
        is_socket = parts.scheme == "unix"
        self._timeout_s = settings.request_timeout_s
        self._key_file = settings.api_key_file
        self._key = settings.api_key or self._read_key()
        verify = settings.tls.context() if parts.scheme == "https" else False
        self._client = httpx.Client(
            base_url="http://routereplay" if is_socket else settings.store_url,
            transport=httpx.HTTPTransport(uds=parts.path if is_socket else None, verify=verify),
            headers={"Content-Type": MEDIA_TYPE},
            timeout=httpx.Timeout(settings.request_timeout_s, connect=settings.connect_timeout_s),
            # A proxy of the environment must not see routes, nor a redirect move them.
            trust_env=False,
            follow_redirects=False,
        )

    def post(self, frames: Sequence[Sequence[Buffer]]) -> Outcome:
        """Send whole frames, in order, without joining them to one body."""
        length = sum(memoryview(part).nbytes for frame in frames for part in frame)
        # An answer that is packed could unpack to anything.
        headers = {"Content-Length": str(length), "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        content = _pieces(frames)
        try:
            with self._client.stream("POST", _PATH, content=content, headers=headers) as response:
                body = self._read_answer(response)
        except httpx.HTTPError as error:
            return Unavailable(f"{type(error).__name__}: {error}", 0.0)
        if body is None:
            return Unavailable("an answer that does not end", 0.0)
        if response.status_code in _NOT_US:
            # The key may have been changed since it was read.
            self._key = self._read_key() or self._key
        return _outcome(response, body, len(frames))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _read_answer(self, response: httpx.Response) -> bytes | None:
        """Return the body, or None if it is longer, or takes longer, than a store's answer."""
        give_up_at = time.monotonic() + self._timeout_s
        body = bytearray()
        for piece in response.iter_raw():
            body += piece
            if len(body) > _MAX_ANSWER_BYTES or time.monotonic() > give_up_at:
                return None
        return bytes(body)

    def _read_key(self) -> str | None:
        if self._key_file is None:
            return None
        try:
            return self._key_file.read_text(encoding="utf-8").strip()
        except OSError:
            return None


def _pieces(frames: Sequence[Sequence[Buffer]]) -> Iterator[bytes]:
    # httpcore copies what a socket did not take at once; small pieces keep that copy small.
    for frame in frames:
        for part in frame:
            view = memoryview(part)
            for start in range(0, view.nbytes, _WRITE_BYTES):
                yield bytes(view[start : start + _WRITE_BYTES])


def _outcome(response: httpx.Response, body: bytes, frames: int) -> Outcome:
    status = response.status_code
    try:
        results = msgspec.json.decode(body, type=IngestResult).results
    except msgspec.DecodeError:
        results = ()
    if len(results) == frames:
        # Each frame has its answer, whatever the status: 429 may be of one full trajectory.
        return Answered(results)
    if status in _RETRYABLE or status >= 500:
        return Unavailable(f"HTTP {status}", _retry_after_s(response))
    code, message = _code(body), body[:200].decode("utf-8", "replace")
    if status in _NOT_US or code == UnsupportedWireVersion.code:
        return Withheld(code or f"http_{status}", message)
    if code and 400 <= status < 500:
        return Refused(code, message)
    # Something that is not the store answered in its place: a proxy, another service.
    return Unavailable(f"HTTP {status} without a result for each of {frames} frames", 0.0)


def _code(body: bytes) -> str | None:
    try:
        code = msgspec.json.decode(body, type=dict[str, object]).get("code")
    except msgspec.DecodeError:
        return None
    return code if isinstance(code, str) else None


def _retry_after_s(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), _RETRY_AFTER_MAX_S) if text.isdigit() else 0.0
