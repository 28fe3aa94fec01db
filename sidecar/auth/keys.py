"""API keys: how they look, how they are kept, how one is checked.

A key is `rr_ID_SECRET`. The file keeps the id and a digest, so whoever reads it can ask
for nothing:

    {"version": 1, "keys": [{"id": "k3v7q2ma", "digest": "9f86...", "scopes": ["write"],
      "namespace": "default", "not_after": "2027-01-31T00:00:00Z", "note": "rack 3"}]}
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from routereplay.sidecar.auth.principal import DEFAULT_NAMESPACE, Principal, Scope
from routereplay.sidecar.errors import KeyFileInvalid
from routereplay.wire.errors import Unauthenticated

FILE_VERSION = 1
_PREFIX = "rr"
_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH = 8
_SECRET_BYTES = 32
_ID = re.compile(r"[a-z0-9]{1,32}")
_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NO_DIGEST = "0" * 64


class ApiKey(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One key of the file."""

    id: str
    digest: str
    """SHA-256 of the secret, in hexadecimal. The secret has 256 random bits: no salt is needed."""
    scopes: tuple[Scope, ...]
    namespace: str = DEFAULT_NAMESPACE
    not_after: datetime | None = None
    """From then on the key is refused; aware, or None for a key without an end."""
    note: str = ""


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds."""

    version: int = FILE_VERSION
    keys: tuple[ApiKey, ...] = ()


class NewKey(NamedTuple):
    """A key that was just made; `text` is shown once and kept nowhere."""

    key: ApiKey
    text: str


class KeyRing:
    """The keys of one file, ready to be asked."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = {key.id: key for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    def principal(self, text: str, now: datetime) -> Principal:
        """Return the holder of the key `text`.

        Every text costs one digest and one comparison, whether its id is known or not.

        Raises:
            Unauthenticated: it is no key, not one of these, or past its end.
        """
        key_id, secret = _split(text)
        key = self._keys.get(key_id)
        known = hmac.compare_digest(_digest(secret), _NO_DIGEST if key is None else key.digest)
        if key is None or not known:
            msg = "the API key is not one of this store's"
            raise Unauthenticated(msg)
        if key.not_after is not None and now >= key.not_after:
            msg = f"API key {key.id} ended on {key.not_after.isoformat()}; ask for a new one"
            raise Unauthenticated(msg)
        return Principal(key.id, key.namespace, frozenset(key.scopes))


def new_key(
    scopes: Sequence[Scope],
    *,
    namespace: str = DEFAULT_NAMESPACE,
    not_after: datetime | None = None,
    note: str = "",
) -> NewKey:
    """Make a key; raise `KeyFileInvalid` for a namespace or scopes that cannot be."""
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
    secret = secrets.token_hex(_SECRET_BYTES)
    key = ApiKey(key_id, _digest(secret), tuple(scopes), namespace, not_after, note)
    _check(key)
    return NewKey(key, f"{_PREFIX}_{key_id}_{secret}")


def parse_key_file(text: bytes, where: str) -> KeyFile:
    """Return what a key file holds.

    Raises:
        KeyFileInvalid: it is not one, or a key of it cannot be.
    """
    try:
        found = msgspec.json.decode(text, type=KeyFile)
    except msgspec.DecodeError as error:
        msg = f"{where} is no key file: {error}. `routereplay keys new` makes one."
        raise KeyFileInvalid(msg) from error
    if found.version != FILE_VERSION:
        msg = f"{where} is a key file of version {found.version}; this release reads {FILE_VERSION}"
        raise KeyFileInvalid(msg)
    for key in found.keys:
        _check(key)
    ids = [key.id for key in found.keys]
    if twice := {key_id for key_id in ids if ids.count(key_id) > 1}:
        msg = f"{where} has key {min(twice)} twice"
        raise KeyFileInvalid(msg)
    return found


def _check(key: ApiKey) -> None:
    problem = ""
    if not _ID.fullmatch(key.id):
        problem = "its id is not 1 to 32 of a-z 0-9"
    elif not _DIGEST.fullmatch(key.digest):
        problem = "its digest is not 64 hexadecimal digits"
    elif not key.scopes:
        problem = "it has no scope"
    elif not _NAMESPACE.fullmatch(key.namespace):
        problem = f"namespace {key.namespace!r} is not 1 to 63 of a-z 0-9 . _ -"
    elif key.not_after is not None and key.not_after.tzinfo is None:
        problem = "not_after has no time zone; write 2027-01-31T00:00:00Z"
    if problem:
        msg = f"API key {key.id[:40]!r}: {problem}"
        raise KeyFileInvalid(msg)


def _split(text: str) -> tuple[str, str]:
    prefix, _, rest = text.partition("_")
    key_id, _, secret = rest.partition("_")
    return (key_id, secret) if prefix == _PREFIX else ("", text)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def utc_now() -> datetime:
    """Return the time that ends of keys are compared with."""
    return datetime.now(UTC)
