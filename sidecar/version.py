"""The version of the installed package."""

from __future__ import annotations

from importlib import metadata


def package_version() -> str:
    """Return the version, or `0+unknown` when run from a tree that is not installed."""
    try:
        return metadata.version("routereplay")
    except metadata.PackageNotFoundError:
        return "0+unknown"
