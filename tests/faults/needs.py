"""What a fault needs of the machine; without it the row is skipped, and the report says why."""

from __future__ import annotations

import os
import shutil

import pytest

_PACKAGES = {"nft": "nftables", "tc": "iproute2", "ip": "iproute2", "strace": "strace"}


def root() -> None:
    """Mounts, network namespaces and packet filters are root's."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


def program(*names: str) -> None:
    """Programs that inject faults."""
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"needs {name}: apt-get install {_PACKAGES.get(name, name)}")
