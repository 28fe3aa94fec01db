"""Request and trajectory ids: one character set, one normalising function.

Ids come from headers and JSON bodies, so they are attacker-controlled text that ends
up in store keys, log lines and URLs. Braces would steer a Redis Cluster hash tag,
slashes and wildcards a path or a SCAN pattern, control characters a log.
"""

from __future__ import annotations

import base64
import re
import uuid

from routereplay.wire.digest import digest
from routereplay.wire.errors import InvalidIdentifier

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@=+~-]{0,199}")
_UUID_BYTES = 16


def is_valid_id(text: str) -> bool:
    """Tell whether `text` can be used as a key as it is."""
    return _ID.fullmatch(text) is not None


def check_id(text: str, what: str = "id") -> str:
    """Return `text`, or raise `InvalidIdentifier` if it cannot be a key."""
    if not is_valid_id(text):
        msg = (
            f"{what} {text[:80]!r} is not a valid id: expected 1 to 200 characters of "
            "A-Z a-z 0-9 . _ : @ = + ~ - that begin with a letter or digit. "
            "normalize_id() gives the key that the recorder used for such a text."
        )
        raise InvalidIdentifier(msg, what=what)
    return text


def normalize_id(text: str) -> str:
    """Return the key for any text: itself if valid, else `h.` and a base32 digest of its bytes.

    The recorder and the client both apply it, so a caller never needs to know which
    of the two happened.
    """
    if is_valid_id(text):
        return text
    raw = digest(text.encode("utf-8", "surrogatepass"))
    return "h." + base64.b32encode(raw).decode().rstrip("=").lower()


def new_engine_id() -> str:
    """Return a fresh id for one recorder process."""
    return uuid.uuid4().hex[:_UUID_BYTES]
