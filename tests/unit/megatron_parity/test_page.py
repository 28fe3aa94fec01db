"""The report is one file that needs nothing, and shows text as text."""

import re

from support.parity_facts import COLUMN, DENSE, NAMES, dense_facts, moe_facts

from routereplay.parity.comparison import render
from routereplay.parity.page import render_page


def test_the_page_loads_nothing_and_escapes_what_it_shows():
    page = render_page(moe_facts())
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="|url\(|@import', page)
    assert page.count("<svg") == 4


def test_the_page_shows_every_figure_of_the_table():
    page = render_page(moe_facts())
    for name in NAMES:
        assert f"</i>{name}</th>" in page
    assert page.count(">4.500 %</td>") == len(NAMES)


def test_the_page_says_what_is_over_a_limit():
    gates = {"limits": {"mean_abs_pct": 1.0, "top20_kl": 0.002}, "exceeded": ["a < b"]}
    page = render_page(moe_facts(gates=gates))
    assert "<li>a &lt; b</li>" in page
    assert page.count('<td class="bad">4.500 %') == 1, "replay on, and no other column"


def test_each_topology_has_a_table_that_names_it():
    columns = moe_facts()["columns"]
    later = {f"{name} tp2": column for name, column in columns.items() if name != "vLLM again"}
    stages = {"1": {}, "tp2": {}}
    page = render_page(moe_facts(columns=columns | later, megatron_stages_s=stages))
    assert "Megatron over 1<" in page
    assert "Megatron over tp2<" in page
    assert page.count("</i>vLLM again</th>") == 2


def test_a_floor_of_zero_is_not_divided_by():
    ratios = {"kl_off_over_on": 2.0, "kl_on_over_engine_again": float("nan")}
    assert "nan" not in render_page(moe_facts(ratios=ratios))


def test_a_dense_model_is_said_to_have_no_routes():
    page = render_page(dense_facts())
    assert "dense: no layer routes" in page
    assert "replay on" not in page
    assert page.count("no routes</td>") == 6
    assert page.count("<svg") == 2


def test_the_table_has_a_line_for_each_layer():
    text = render({"a column with a long name": COLUMN, "b": COLUMN}).splitlines()
    assert text[-2].split() == ["1", "10.00%", "10.00%"]
    assert text[-1].split() == ["2", "30.00%", "30.00%"]
    assert len({len(line) for line in text if line.strip() and "by MoE layer" not in line}) == 1


def test_the_table_of_a_dense_model_has_no_layers():
    text = render({"Megatron": DENSE})
    assert "by MoE layer" not in text
    assert text.count("no routes") == 2
