"""API keys in a file, for stores under test."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from routereplay.sidecar.auth.key_store import read_key_file, write_key_file
from routereplay.sidecar.auth.keys import KeyFile, new_key


class Keys:
    """A key file in `folder`; `make` returns the text of a key."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"
        write_key_file(self.path, KeyFile())

    def make(self, *scopes: str, namespace: str = "default", ended: bool = False) -> str:
        end = datetime(2020, 1, 1, tzinfo=UTC) if ended else None
        made = new_key(scopes, namespace=namespace, not_after=end)
        held = read_key_file(self.path).keys
        write_key_file(self.path, KeyFile(keys=(*held, made.key)))
        return made.text

    def revoke(self, text: str) -> None:
        held = read_key_file(self.path).keys
        left = tuple(key for key in held if key.id != text.split("_")[1])
        write_key_file(self.path, KeyFile(keys=left))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
