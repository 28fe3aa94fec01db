"""Files of a wheel on a package index, without downloading the wheel.

A wheel is a zip archive: its directory is at its end and each file stands by itself, so a
few ranged requests read one source file of 100 KB from a wheel of 300 MB. The index is the
one that pip is configured for.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx

_READ_AHEAD = 1 << 20


def versions_on_index(package: str) -> list[str]:
    """Return the final releases of `package` on pip's index, newest first.

    Raises:
        RuntimeError: pip found none; its own words are in the message.
    """
    for line in _pip("index", "versions", package).splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == "Available versions":
            return [version.strip() for version in rest.split(",")]
    msg = f"pip lists no versions of {package}"
    raise RuntimeError(msg)


def wheel_url(package: str, version: str) -> str:
    """Return where pip would take the wheel of `package` from.

    Raises:
        RuntimeError: there is none; pip's own words are in the message.
    """
    asked = ("--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--report=-")
    report = json.loads(_pip("install", "--quiet", *asked, f"{package}=={version}"))
    url: str = report["install"][0]["download_info"]["url"]
    return url


class RemoteWheel:
    """The text files of a wheel, read by range; `with RemoteWheel(url) as wheel: wheel.read(...)`.

    Args:
        url: of the wheel.
        transport: for tests; None is the network.
    """

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self._client = httpx.Client(transport=transport, follow_redirects=True, timeout=60.0)
        ranged: io.RawIOBase = _Ranged(self._client, url)
        self._archive = zipfile.ZipFile(io.BufferedReader(ranged, _READ_AHEAD))
        self._names = frozenset(self._archive.namelist())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._archive.close()
        self._client.close()

    def read(self, path: str) -> str | None:
        """Return the text of one file, or None if the wheel has none of that name."""
        return self._archive.read(path).decode() if path in self._names else None

    def read_bytes(self, path: str) -> bytes:
        """Return one file as it is; raises `KeyError` if the wheel has none of that name."""
        return self._archive.read(path)


class _Ranged(io.RawIOBase):
    """A file behind a URL whose server answers ranged requests."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client, self._url, self._at = client, url, 0
        answer = client.get(url, headers={"Range": "bytes=0-0"})
        answer.raise_for_status()
        _, _, size = answer.headers.get("Content-Range", "").rpartition("/")
        if answer.status_code != httpx.codes.PARTIAL_CONTENT or not size.isdigit():
            msg = f"{url} is not served by range (status {answer.status_code})"
            raise RuntimeError(msg)
        self._size = int(size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        asked = f"bytes={self._at}-{self._at + wanted - 1}"
        answer = self._client.get(self._url, headers={"Range": asked})
        answer.raise_for_status()
        data = answer.content
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _pip(*arguments: str) -> str:
    command: Sequence[str] = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"pip {' '.join(arguments)} failed:\n{done.stderr.strip()}"
        raise RuntimeError(msg)
    return done.stdout
