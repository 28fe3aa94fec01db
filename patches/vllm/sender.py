"""One POST to the store and what its answer means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

import msgspec

from routereplay.client._http import Answer, Connections
from routereplay.patches.vllm.settings import MIB, Settings
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import StoreUnreachable, TransportError, UnsupportedWireVersion
from routereplay.wire.records import FrameResult, IngestResult
from routereplay.wire.version import MEDIA_TYPE

_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_PATH = "/v1/ingest"
_MAX_ANSWER_BYTES = 4 * MIB
_NOT_US = frozenset({401, 403})
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
        self._timeout_s = settings.request_timeout_s
        self._key_file = settings.api_key_file
        self._key = settings.api_key or self._read_key()
        is_tls = urlsplit(settings.store_url).scheme == "https"
        self._connections = Connections(
            settings.store_url,
            headers={"Content-Type": MEDIA_TYPE},
            connect_timeout_s=settings.connect_timeout_s,
            ssl_context=settings.tls.context() if is_tls else None,
        )

    def post(self, frames: Sequence[Sequence[Buffer]]) -> Outcome:
        """Send whole frames, in order, from where their bytes are."""
        # An answer that is packed could unpack to anything.
        headers = {"Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            answer = self._connections.exchange(
                *("POST", _PATH),
                timeout_s=self._timeout_s,
                body=[part for frame in frames for part in frame],
                headers=headers,
                room=_room,
                answer_s=self._timeout_s,
            )
        except TransportError as error:
            return Unavailable(error.message, 0.0)
        if answer.status in _NOT_US:
            # The key may have been changed since it was read.
            self._key = self._read_key() or self._key
        return _outcome(answer, len(frames))

    def close(self) -> None:
        """Close the connection."""
        self._connections.close()

    def _read_key(self) -> str | None:
        if self._key_file is None:
            return None
        try:
            return self._key_file.read_text(encoding="utf-8").strip()
        except OSError:
            return None


def _room(nbytes: int) -> memoryview:
    if nbytes > _MAX_ANSWER_BYTES:
        msg = f"an answer of {nbytes} bytes is not a store's"
        raise StoreUnreachable(msg)
    return memoryview(bytearray(nbytes))


def _outcome(answer: Answer, frames: int) -> Outcome:
    status, body = answer.status, bytes(answer.body)
    try:
        results = msgspec.json.decode(body, type=IngestResult).results
    except msgspec.DecodeError:
        results = ()
    if len(results) == frames:
        # Each frame has its answer, whatever the status: 429 may be of one full trajectory.
        return Answered(results)
    if status in _RETRYABLE or status >= 500:
        return Unavailable(f"HTTP {status}", _retry_after_s(answer))
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


def _retry_after_s(answer: Answer) -> float:
    text = answer.headers.get("Retry-After", "")
    return min(float(text), _RETRY_AFTER_MAX_S) if text.isdigit() else 0.0
