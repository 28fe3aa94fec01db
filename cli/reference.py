"""Pages of the docs that are made from the code, so that they cannot drift.

`python -m routereplay.cli.reference docs` writes them; a test compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

from routereplay.cli import compatibility
from routereplay.cli.command_reference import command_page
from routereplay.cli.http_operations import operations_page
from routereplay.patches._patch import Requirement
from routereplay.patches.vllm.releases import BEFORE, DIFFERENCES, FIRST
from routereplay.patches.vllm.table import LATER_REQUIREMENTS, PATCHES, REQUIREMENTS


def patches_page() -> str:
    """Return docs/patches.md."""
    supported = f">={_release(FIRST)},<{_release(BEFORE)}"
    lines = [
        "# Patches",
        "",
        "Made from `patches/vllm/table.py` by `python -m routereplay.cli.reference docs`.",
        "",
        f"vLLM `{supported}`. Before anything is changed, every symbol below is looked up and",
        "its leading parameters are compared with those that the wrapper relies on; if one does",
        "not fit, start-up fails with all of them and nothing is changed. A wrapper calls what it",
        "wraps and copies none of it. `routereplay doctor` shows whether the installed vLLM fits.",
        "`patches/vllm/surface.json` holds the same facts, and a fingerprint of every wrapped",
        "body, of each release on the index, read from its wheel. `python -m",
        "routereplay.cli.surface` reads them all anew in half a minute and fails if one does not",
        "fit or has a new body.",
        "",
        "| patch | wraps | relies on | why | can go when |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{patch.name}` | `{patch.target}` | `({', '.join(patch.uses)}, ...)` | {patch.reason} "
        f"| {patch.remove_when} |"
        for patch in PATCHES
    ]
    lines += ["", "Names that the wrappers read, checked at the same time:", ""]
    lines += ["| of | names | for | since |", "|---|---|---|---|"]
    lines += [_needed(needed, FIRST) for needed in REQUIREMENTS]
    lines += [_needed(needed, since.first) for since, needed in LATER_REQUIREMENTS]
    lines += [
        "",
        "What differs between the releases, and from which on it is so:",
        "",
        "| since | what |",
        "|---|---|",
    ]
    lines += [f"| {_release(since.first)} | {since.what} |" for since in DIFFERENCES]
    lines += [
        "",
        "Megatron-Core is not patched: each live router of the decoder is handed an object to ask",
        "for its experts (`router.router_replay`, 0.16 and later), and `disable()` puts back what",
        "was there.",
        "",
    ]
    return "\n".join(lines)


PAGES = {
    "patches.md": patches_page,
    "compatibility.md": compatibility.page,
    "command.md": command_page,
    "http-operations.md": operations_page,
}


def main(folder: str) -> None:
    """Write every page to `folder`."""
    for name, page in PAGES.items():
        Path(folder, name).write_text(page(), encoding="utf-8")


def _needed(needed: Requirement, first: tuple[int, ...]) -> str:
    names = ", ".join(f"`{name}`" for name in needed.names)
    return f"| `{needed.target}` | {names} | {needed.reason} | {_release(first)} |"


def _release(parts: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in parts)


if __name__ == "__main__":
    main(sys.argv[1])
