"""The site of ./scripts/docs: README, CHANGELOG and docs/, as they lie in the repository.

Sources are read from the repository's root, so that a link means on the site what it means in
the tree. `docs/index.md` alone says what is in the navigation, and in which order.
"""

from __future__ import annotations

import logging
import re
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# Its modules tell at import what the machine lacks.
logging.getLogger("megatron").setLevel(logging.ERROR)

ROOT = Path(__file__).parents[1]

project = "routereplay"
author = "the routereplay authors"
project_copyright = "Apache-2.0"
release = version = installed("routereplay")

root_doc = "docs/index"
source_suffix = {".md": "markdown"}
include_patterns = ["README.md", "CHANGELOG.md", "docs/**.md"]
# What is walked into, and cannot hold a page.
exclude_patterns = sorted(
    f"{path.name}/**" if path.is_dir() else path.name
    for path in ROOT.iterdir()
    if path.name not in ("README.md", "CHANGELOG.md", "docs")
)
exclude_patterns += [pattern.removesuffix("/**") for pattern in exclude_patterns]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 4
suppress_warnings: list[str] = []
# Docstrings are plain text: `name` is code, and a link where it is documented.
default_role = "py:obj"
autodoc_default_options = {"members": True, "show-inheritance": True, "undoc-members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"routereplay {release}"
html_copy_source = False
html_show_sphinx = False
html_additional_pages = {"index": "start.html"}
templates_path = ["_templates"]

_LISTS = (root_doc, "docs/decisions/README")
_SECTION = re.compile(r"^##? (.+?)$(.*?)(?=^##? |\Z)", re.MULTILINE | re.DOTALL)
_ENTRY = re.compile(r"^\* \[[^]]+\]\(([^)#]+)\.md\)", re.MULTILINE)


def navigation(text: str) -> str:
    """Return the hidden tables of contents that the lists of a page stand for."""
    parts = []
    for title, body in _SECTION.findall(text):
        if pages := _ENTRY.findall(body):
            parts += ["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```", ""]
    return "\n".join(parts)


def _add_navigation(_app: Sphinx, name: str, source: list[str]) -> None:
    if name in _LISTS:
        source[0] += "\n" + navigation(source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _add_navigation)
