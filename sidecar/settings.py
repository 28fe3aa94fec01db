"""Settings of the sidecar: one frozen object, read once from `ROUTEREPLAY_*`."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from routereplay.sidecar.errors import BadConfigFile, EngineStartError

PREFIX = "ROUTEREPLAY_"
CONFIG = "ROUTEREPLAY_CONFIG"
"""Variable that names a TOML file, whose table `store` holds settings."""
_TABLES = {"store", "recorder"}
MIB = 1024 * 1024
_SCHEMES = ("redis://", "rediss://", "redis+cluster://", "rediss+cluster://", "unix://")


def _default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "routereplay"


def _default_max_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


class Settings(BaseSettings):
    """Everything the sidecar can be told; field `ttl_s` is variable `ROUTEREPLAY_TTL_S`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        # A URL holds a password, and errors end up in logs.
        hide_input_in_errors=True,
    )

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8400, ge=0, le=65535)
    """TCP port to listen on; 0 picks a free one."""
    keys_file: Path | None = None
    """API keys, made by `routereplay keys new`; none: whoever reaches the port may do all."""
    insecure_no_auth: bool = False
    """Listen where other machines can reach us although there are no keys."""
    ssl_keyfile: Path | None = None
    """Private key of the server's certificate, PEM."""
    ssl_certfile: Path | None = None
    """The server's certificate, PEM; with it the store speaks TLS only."""
    ssl_ca_certs: Path | None = None
    """Who signs the certificates of clients, PEM."""
    ssl_cert_reqs: int = Field(default=0, ge=0, le=2)
    """Certificates of clients: 0 not asked for, 1 checked if there is one, 2 required."""
    enable_ssl_refresh: bool = True
    """Take up certificates that are replaced while the store runs."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    redis_url: SecretStr | None = None
    """`redis://`, `rediss://`, `redis+cluster://` or `unix://`; none: an embedded Valkey."""
    redis_url_file: Path | None = None
    """A file that holds such a URL, for one with a password."""
    durability: Literal["memory", "process", "disk", "replica"] = "process"
    """What an acknowledged record survives: `memory` our end, `process` a killed engine, `disk` a
    loss of power, `replica` the loss of the engine's machine."""
    data_dir: Path = Field(default_factory=_default_data_dir)
    """Where the embedded engine keeps its append-only file; unused with `memory`."""
    max_memory_bytes: int = Field(default_factory=_default_max_memory_bytes, ge=32 * MIB)
    """Memory of the embedded engine; full means 503 `store_full`, never eviction."""
    engine_timeout_s: float = Field(default=1.5, gt=0, le=60)
    """Longest wait for one answer of the engine."""
    engine_connections: int = Field(default=64, ge=1)
    """Connections to the engine at most."""

    ttl_s: int = Field(default=4 * 3600, ge=1)
    """Life of a sealed record."""
    staging_ttl_s: int = Field(default=3600, ge=1)
    """Life of a chunk that is not sealed: the longest generation that can be recorded."""
    tombstone_ttl_s: int = Field(default=24 * 3600, ge=1)
    """How much longer than the record its state is known: `expired`, not `not_found`."""
    value_bytes: int = Field(default=MIB, ge=64 * 1024, le=MIB)
    """Longest value in the engine; a longer one makes every other client wait."""

    max_body_bytes: int = Field(default=64 * MIB, ge=1)
    """Longest ingest body."""
    max_inflight_bytes: int = Field(default=512 * MIB, ge=1)
    """Ingest bodies in memory at one time; more are answered 503 before they are read."""
    memory_high_water: float = Field(default=0.9, gt=0, le=1)
    """Part of the engine's memory from which on new routes are answered 503."""
    max_trajectory_bytes: int = Field(default=2048 * MIB, ge=1)
    """Rows that one trajectory may bring while it lives."""
    max_trajectory_requests: int = Field(default=10_000, ge=1)
    """Requests that one trajectory may bring while it lives."""
    max_key_inflight_bytes: int = Field(default=256 * MIB, ge=1)
    """Ingest bodies of one API key in memory at one time."""
    max_key_requests: int = Field(default=256, ge=1)
    """Open requests of one API key."""
    max_wait_s: float = Field(default=60.0, ge=0)
    """Longest `wait=` of a read."""
    max_fetch_ids: int = Field(default=1024, ge=1)
    """Ids in one `POST /v1/fetch`."""
    head_timeout_s: float = Field(default=10.0, gt=0)
    """Longest time to the end of a request's headers."""
    stall_timeout_s: float = Field(default=10.0, gt=0)
    """How long a body, or a client that reads an answer, may lag behind `min_bytes_per_s`."""
    min_bytes_per_s: float = Field(default=64 * 1024, gt=0)
    """Least average rate of a body and of a client that reads an answer."""
    allowed_hosts: str | None = None
    """Names, separated by commas, that a store without keys may be asked by; `*` is any."""
    max_connections: int = Field(default=1024, ge=1)
    """Open connections of clients; one more is answered 503."""
    graceful_shutdown_s: int = Field(default=25, ge=1)
    """How long a stopping server lets open requests end."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before variables, variables before the file, the file before defaults."""
        table = InitSettingsSource(settings_cls, init_kwargs=_table(os.environ.get(CONFIG)))
        return init_settings, env_settings, table

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            _check_scheme(url.get_secret_value())
        return url

    @model_validator(mode="after")
    def _one_engine(self) -> Settings:
        if self.durability == "replica" and not self.has_engine:
            msg = (
                "the embedded engine has no replica: for ROUTEREPLAY_DURABILITY=replica set "
                "ROUTEREPLAY_REDIS_URL to an engine that has one"
            )
            raise ValueError(msg)
        if self.redis_url is not None and self.redis_url_file is not None:
            msg = "ROUTEREPLAY_REDIS_URL and ROUTEREPLAY_REDIS_URL_FILE are both set; keep one"
            raise ValueError(msg)
        return self

    @property
    def has_engine(self) -> bool:
        """Whether we were told of an engine, and start none."""
        return self.redis_url is not None or self.redis_url_file is not None

    def engine_url(self) -> str | None:
        """Return the URL of the engine that we were told of, with its password.

        Raises:
            EngineStartError: `redis_url_file` cannot be read, or holds no such URL.
        """
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        if self.redis_url_file is None:
            return None
        try:
            url = self.redis_url_file.read_text().strip()
            _check_scheme(url)
        except (OSError, ValueError) as error:
            msg = f"ROUTEREPLAY_REDIS_URL_FILE={self.redis_url_file}: {error}"
            raise EngineStartError(msg) from error
        return url

    @property
    def host_names(self) -> frozenset[str]:
        """Names of `allowed_hosts`, in lower case."""
        names = (name.strip().lower() for name in (self.allowed_hosts or "").split(","))
        return frozenset(name for name in names if name)

    @property
    def index_ttl_s(self) -> int:
        """Life of what tells an expired record from one that never was."""
        return max(self.ttl_s, self.staging_ttl_s) + self.tombstone_ttl_s


def _check_scheme(url: str) -> None:
    if not url.startswith(_SCHEMES):
        msg = f"expected a URL that begins with one of {', '.join(_SCHEMES)}"
        raise ValueError(msg)


def _table(path: str | None) -> dict[str, Any]:
    """Return table `store` of the file that `ROUTEREPLAY_CONFIG` names."""
    if not path:
        return {}
    try:
        held = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{CONFIG}={path}: {error}"
        raise BadConfigFile(msg) from error
    if strange := sorted(set(held) - _TABLES):
        msg = f"{CONFIG}={path}: {strange} outside of the tables [store] and [recorder]"
        raise BadConfigFile(msg)
    table = held.get("store", {})
    if not isinstance(table, dict):
        msg = f"{CONFIG}={path}: `store` is no table; expected a line [store] and settings below"
        raise BadConfigFile(msg)
    return table


def misspelt_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return variables that look like a misspelt setting, with the setting they resemble.

    The prefix is shared with the recorder, so a name that is merely unknown here says nothing.
    """
    known = [CONFIG, *(PREFIX + name.upper() for name in Settings.model_fields)]
    found = {}
    for name in environ:
        if name.startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
            if close:
                found[name] = close[0]
    return found
