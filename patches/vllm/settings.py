"""Settings of the recorder: read from the environment once, then passed down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args
from urllib.parse import urlsplit

from routereplay.client.tls import TlsFiles
from routereplay.wire.codec import Codec

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

Tap: TypeAlias = Literal["auto", "engine"]

CanaryMode: TypeAlias = Literal["refuse", "mute", "off"]
"""A failed canary ends the start-up, or lets vLLM serve and nothing be recorded."""


@dataclass(frozen=True)
class Settings:
    """How routes leave the process."""

    store_url: str
    """`http://host:port`, `https://...` or `unix:///path/to/socket`."""
    api_key: str | None = field(default=None, repr=False)
    api_key_file: Path | None = None
    """Where the key is, instead; read again when the store refuses it."""
    tls: TlsFiles = field(default_factory=TlsFiles)
    """By what an https store is recognised, and we by it."""
    queue_bytes: int = GIB
    """Rows that may wait for the store, in bytes; more are dropped and counted."""
    queue_items: int = 500_000
    """Arrays (about one for each token) that may wait for the exporter thread."""
    flush_bytes: int = 256 * KIB
    """A request's rows are framed when there are this many bytes of them."""
    flush_age_s: float = 1.0
    """... or when the oldest is this old."""
    chunk_bytes: int = MIB
    """Largest payload of one frame."""
    post_bytes: int = 8 * MIB
    """Largest body of one POST."""
    connect_timeout_s: float = 2.0
    request_timeout_s: float = 10.0
    retry_ceiling_s: float = 30.0
    """Longest pause between two tries; each is drawn between 0 and a limit that doubles."""
    retry_deadline_s: float = 600.0
    """How long a frame in memory is offered to a store that does not take it."""
    spool_dir: Path | None = None
    """Where rows wait on disk while the store is away; None keeps them in memory only."""
    spool_bytes: int = 16 * GIB
    """What this process may hold on disk."""
    flush_timeout_s: float = 5.0
    """How long the end of the process may wait for the last rows."""
    only_new_rows: bool = True
    """Leave out rows that an earlier turn of the trajectory or another choice has."""
    codec: Codec = "raw"
    """How ids are written: as they are, in as few bits as they need, or without their order."""
    canary: CanaryMode = "refuse"
    """What to do when the first generation shows that routes are not real."""
    tap: Tap = "auto"
    """Where requests are recorded: in the front end, and `engine` for those of others; `auto`
    goes by vLLM's own switch for its Rust front end."""
    metrics_port: int = 0
    """Where the engine core shows the recorder's metrics if it records by itself; 0: nowhere.
    Data-parallel rank n adds n."""
    allow_untested: bool = False
    """Run on a vLLM outside the proven range; symbols and signatures are checked all the same."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read `ROUTEREPLAY_*`; raises `ValueError` that names the variable."""
        return cls(
            store_url=_store_url(environ.get("ROUTEREPLAY_STORE_URL", "")),
            api_key=environ.get("ROUTEREPLAY_API_KEY") or None,
            api_key_file=_api_key_file(environ),
            tls=_tls(environ),
            queue_bytes=int(_positive(environ, "QUEUE_BYTES", cls.queue_bytes)),
            queue_items=int(_positive(environ, "QUEUE_ITEMS", cls.queue_items)),
            request_timeout_s=_positive(environ, "REQUEST_TIMEOUT_S", cls.request_timeout_s),
            retry_ceiling_s=_positive(environ, "RETRY_CEILING_S", cls.retry_ceiling_s),
            retry_deadline_s=_positive(environ, "RETRY_DEADLINE_S", cls.retry_deadline_s),
            spool_dir=_path(environ.get("ROUTEREPLAY_SPOOL_DIR")),
            spool_bytes=int(_positive(environ, "SPOOL_BYTES", cls.spool_bytes)),
            flush_timeout_s=_positive(environ, "FLUSH_TIMEOUT_S", cls.flush_timeout_s),
            only_new_rows=environ.get("ROUTEREPLAY_ONLY_NEW_ROWS", "1") != "0",
            codec=_codec(environ.get("ROUTEREPLAY_CODEC", "raw")),
            canary=_canary(environ.get("ROUTEREPLAY_CANARY", "refuse")),
            tap=_tap(environ.get("ROUTEREPLAY_TAP", "auto")),
            metrics_port=int(_positive(environ, "METRICS_PORT", cls.metrics_port)),
            allow_untested=environ.get("ROUTEREPLAY_ALLOW_UNTESTED", "0") == "1",
        )

    @property
    def store_name(self) -> str:
        """The store without credentials, for logs."""
        parts = urlsplit(self.store_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _positive(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(f"ROUTEREPLAY_{name}", "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        msg = f"ROUTEREPLAY_{name}={text!r} means nothing; expected a number above 0"
        raise ValueError(msg)
    return value


def _codec(text: str) -> Codec:
    return cast(Codec, _word("CODEC", text, get_args(Codec)))


def _canary(text: str) -> CanaryMode:
    return cast(CanaryMode, _word("CANARY", text, get_args(CanaryMode)))


def _tap(text: str) -> Tap:
    return cast(Tap, _word("TAP", text, get_args(Tap)))


def _word(name: str, text: str, words: Sequence[str]) -> str:
    word = text.strip().lower()
    if word not in words:
        expected = " or ".join([", ".join(words[:-1]), words[-1]])
        msg = f"ROUTEREPLAY_{name}={text!r} means nothing; expected {expected}"
        raise ValueError(msg)
    return word


def _store_url(text: str) -> str:
    parts = urlsplit(text)
    has_place = parts.path if parts.scheme == "unix" else parts.hostname
    if parts.scheme not in {"http", "https", "unix"} or not has_place:
        msg = (
            f"ROUTEREPLAY_STORE_URL={text!r} is no address of a store; expected "
            "http://host:port, https://host:port or unix:///path/to/socket"
        )
        raise ValueError(msg)
    return text.rstrip("/")


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _api_key_file(environ: Mapping[str, str]) -> Path | None:
    path = _path(environ.get("ROUTEREPLAY_API_KEY_FILE"))
    if path is None or environ.get("ROUTEREPLAY_API_KEY"):
        return None
    try:
        path.read_text(encoding="utf-8")
    except OSError as error:
        msg = f"ROUTEREPLAY_API_KEY_FILE={str(path)!r} cannot be read: {error.strerror}"
        raise ValueError(msg) from error
    return path


def _tls(environ: Mapping[str, str]) -> TlsFiles:
    files = TlsFiles.from_env(environ)
    # Now, where it is said at start-up, and not with the first request.
    files.context()
    return files
