"""The report is one file that needs nothing, and shows text as text."""

import dataclasses
import re

from routereplay.parity.comparison import Mismatch, render
from routereplay.parity.page import render_page

COLUMN = Mismatch(4.5, 0.01, 0.9, 0.95, 0.0015, 0.0015, 0.2, 0.1, (0.1, 0.3))
NAMES = ("vLLM again", "replay off", "replay on", "Megatron again")
HOSTILE = "</pre><script>alert(1)</script>"


def facts(**changes):
    found = {
        "checkpoint": HOSTILE,
        "sampled_tokens": 4,
        "tokens": 9,
        "trajectories": 2,
        "columns": {name: dataclasses.asdict(COLUMN) for name in NAMES},
        "gates": {"limits": {"mean_abs_pct": 7.0, "top20_kl": 0.002}, "exceeded": []},
        "by_position": {"edges": [0, 1, 2], "replay off": [0.1, None], "replay on": [0.0, 0.1]},
        "points": {name: [[-1.0, -1.1], [-2.0, -2.0]] for name in ("replay off", "replay on")},
        "run": {"versions": {"vllm": HOSTILE}},
    }
    return found | changes


def test_the_page_loads_nothing_and_escapes_what_it_shows():
    page = render_page(facts())
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="|url\(|@import', page)
    assert page.count("<svg") == 4


def test_the_page_shows_every_figure_of_the_table():
    page = render_page(facts())
    for name in NAMES:
        assert f"<th>{name}</th>" in page
    assert page.count("<td>4.500 %</td>") == len(NAMES)


def test_the_page_says_what_is_over_a_limit():
    gates = {"limits": {"mean_abs_pct": 1.0, "top20_kl": 0.002}, "exceeded": ["a < b"]}
    assert "over the limits: a &lt; b" in render_page(facts(gates=gates))


def test_the_table_has_a_line_for_each_layer():
    text = render({"a column with a long name": COLUMN, "b": COLUMN}).splitlines()
    assert text[-2].split() == ["1", "10.00%", "10.00%"]
    assert text[-1].split() == ["2", "30.00%", "30.00%"]
    assert len({len(line) for line in text if line.strip() and "by MoE layer" not in line}) == 1
