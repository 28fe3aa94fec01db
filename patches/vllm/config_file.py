"""Settings from a file: what the environment leaves out stands in table `recorder` of a TOML.

Put into the environment itself, so that every process that vLLM starts has the same ones.
"""

from __future__ import annotations

import tomllib
from collections.abc import MutableMapping
from pathlib import Path

NAMES = frozenset(
    {
        "allow_untested",
        "api_key_file",
        "canary",
        "codec",
        "enabled",
        "flush_timeout_s",
        "metrics_port",
        "only_new_rows",
        "queue_bytes",
        "queue_items",
        "request_timeout_s",
        "retry_ceiling_s",
        "retry_deadline_s",
        "spool_bytes",
        "spool_dir",
        "store_url",
        "tap",
        "tls_ca_file",
        "tls_cert_file",
        "tls_key_file",
    }
)
"""What table `recorder` may hold: the recorder's variables, without prefix and in small
letters. A key itself belongs into a file of its own, `api_key_file`."""


def fill(environ: MutableMapping[str, str]) -> None:
    """Add what the file says and the environment does not; it is named by `ROUTEREPLAY_CONFIG`.

    Raises:
        ValueError: the file cannot be read, is no TOML, or holds what is no setting.
    """
    path = environ["ROUTEREPLAY_CONFIG"]
    try:
        held = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"ROUTEREPLAY_CONFIG={path}: {error}"
        raise ValueError(msg) from error
    if strange := sorted(set(held) - {"store", "recorder"}):
        msg = f"ROUTEREPLAY_CONFIG={path}: {strange} outside of the tables [store] and [recorder]"
        raise ValueError(msg)
    table = held.get("recorder", {})
    if not isinstance(table, dict) or not set(table) <= NAMES:
        found = sorted(set(table) - NAMES) if isinstance(table, dict) else table
        msg = (
            f"ROUTEREPLAY_CONFIG={path}: table [recorder] holds {found}; "
            f"expected only {', '.join(sorted(NAMES))}"
        )
        raise ValueError(msg)
    for name, value in table.items():
        text = str(int(value)) if isinstance(value, bool) else str(value)
        environ.setdefault(f"ROUTEREPLAY_{name.upper()}", text)
