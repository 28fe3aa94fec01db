"""The site: its navigation has every page, and the strict build finds nothing wrong."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ENTRY = re.compile(r"^\* \[[^]]+\]\(([^)#]+\.md)\)", re.MULTILINE)


def listed(page):
    return [(page.parent / target).resolve() for target in ENTRY.findall(page.read_text())]


def test_every_page_is_in_the_navigation_once():
    index, decisions = DOCS / "index.md", DOCS / "decisions/README.md"
    found = [*listed(index), *listed(decisions)]

    assert len(found) == len(set(found))
    pages = {*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"} - {index}
    assert set(found) == pages


@pytest.mark.timeout(300)  # eight seconds of CPU, on machines that do much else
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="needs the extra 'docs'")
def test_the_site_builds_without_a_warning(tmp_path):
    """As ./scripts/docs, but for writing the pages: links, anchors, docstrings, references."""
    options = ["--builder", "dummy", "--conf-dir", "docs", "--doctree-dir", tmp_path / "doctrees"]
    strict = ["--fail-on-warning", "--keep-going", "--quiet"]
    built = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "sphinx", *options, *strict, ".", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert built.returncode == 0, built.stdout + built.stderr
