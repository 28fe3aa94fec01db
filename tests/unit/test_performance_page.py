"""docs/performance.md is what its results say."""

import re
from pathlib import Path

from route_store import page


def test_the_page_and_its_plot_are_generated_from_the_results():
    text, plot = page.generate()

    assert page.PAGE.read_text() == text, "run: PYTHONPATH=benchmarks python -m route_store.page"
    assert page.PLOT.read_text() == plot


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"@[A-Z_]+@", Path(page.PAGE).read_text())
