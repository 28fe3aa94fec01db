"""The one hash of the wire: BLAKE3, 16 bytes.

One function for identity (is this the same record?) and integrity (are these the
bytes that were recorded?). BLAKE3 because every vLLM environment already holds it.
"""

from __future__ import annotations

from typing import TypeAlias

import blake3

DIGEST_BYTES = 16

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Raw bytes. Of a C-contiguous numpy array: its `.data`."""


def digest(*parts: Buffer) -> bytes:
    """Return the 16-byte BLAKE3 digest of the concatenation of `parts`."""
    hasher = blake3.blake3(_flat(parts[0]) if parts else b"")
    for part in parts[1:]:
        hasher.update(_flat(part))
    return hasher.digest(DIGEST_BYTES)


class RunningDigest:
    """The digest of bytes that arrive in pieces; equal to `digest` of their concatenation."""

    def __init__(self) -> None:
        self._hasher = blake3.blake3()

    def update(self, part: Buffer) -> None:
        """Append `part`."""
        self._hasher.update(_flat(part))

    def digest(self) -> bytes:
        """Return the digest of everything appended so far."""
        return bytes(self._hasher.digest(DIGEST_BYTES))


def _flat(part: Buffer) -> memoryview:
    view = memoryview(part)
    if view.ndim == 1 and view.format == "B":
        return view
    # A view of a zero-sized array cannot be cast, and adds nothing to a hash.
    return view.cast("B") if view.nbytes else memoryview(b"")
