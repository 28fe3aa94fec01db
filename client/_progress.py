"""The bar that long fetches show if they are asked to."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm


def progress_bar(total: int, unit: str, show: bool) -> Any:
    """Return a bar of `total` units; a silent one unless it is to be shown."""
    return tqdm(total=total, unit=unit, desc="routes", disable=not show)
