"""What the recorder touches of vLLM, in every release: the snapshot, and how it is made.

    python -m routereplay.cli.surface            read every supported release on the index anew
    python -m routereplay.cli.surface 0.34.0     look at one more release, change nothing

Status 1: a release does not fit, a published one changed, or one has bodies that nobody saw.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from routereplay.cli.wheels import RemoteWheel, versions_on_index, wheel_url
from routereplay.patches._surface import Reader, Surface, misfits, read_surface
from routereplay.patches.vllm.releases import BEFORE, FIRST, Release
from routereplay.patches.vllm.table import PATCHES, requirements

SNAPSHOT = "surface.json"


def load_snapshot() -> dict[str, Surface]:
    """Return the surface of every release that was read, by version."""
    text = files("routereplay.patches.vllm").joinpath(SNAPSHOT).read_text(encoding="utf-8")
    snapshot: dict[str, Surface] = json.loads(text)
    return snapshot


def surface_of(read: Reader, version: str) -> Surface:
    """Return the surface of one release from its source."""
    return read_surface(read, PATCHES, requirements(Release.of(version)))


def misfits_of(surface: Surface, version: str) -> list[str]:
    """Return what of a release does not fit the recorder."""
    return misfits(surface, PATCHES, requirements(Release.of(version)))


def unseen_bodies(surface: Surface, snapshot: dict[str, Surface]) -> list[str]:
    """Return the names of patches whose wrapped body is that of no release in the snapshot."""
    return [
        name
        for name, found in surface["patches"].items()
        if all(_body(known, name) != found["body"] for known in snapshot.values())
    ]


def main(arguments: list[str]) -> int:
    """Read releases from the index; returns the exit status."""
    known = load_snapshot()
    asked = arguments or [v for v in reversed(versions_on_index("vllm")) if _supported(v)]
    read = {version: _read_wheel(version) for version in asked}
    problems = list(_problems(read, known))
    print("\n".join(problems) or f"{len(read)} releases read; every one fits and is known")
    if not arguments:
        path = Path(str(files("routereplay.patches.vllm").joinpath(SNAPSHOT)))
        path.write_text(json.dumps(read, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{len(read)} releases written to {path}")
    return 1 if problems else 0


def _problems(read: dict[str, Surface], known: dict[str, Surface]) -> Iterable[str]:
    for version, surface in read.items():
        for line in misfits_of(surface, version):
            yield f"vllm {version} does not fit: {line}"
        then = known.get(version, surface)["patches"]
        if changed := [n for n, found in surface["patches"].items() if then.get(n, found) != found]:
            yield f"vllm {version} is not what the snapshot says: {', '.join(changed)}"
        if version not in known and (unseen := unseen_bodies(surface, known)):
            yield f"vllm {version} has bodies that nobody has looked at: {', '.join(unseen)}"


def _read_wheel(version: str) -> Surface:
    with RemoteWheel(wheel_url("vllm", version)) as wheel:
        return surface_of(wheel.read, version)


def _supported(version: str) -> bool:
    return FIRST <= Release.of(version).numbers < BEFORE


def _body(surface: dict[str, Any], name: str) -> str | None:
    found = surface["patches"].get(name)
    return None if found is None else found["body"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
