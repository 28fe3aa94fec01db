"""The parity report in a real browser, opened from a file."""

import os

from support.parity_facts import HOSTILE, dense_facts, moe_facts

from routereplay.parity.page import render_page

ACROSS = "() => document.documentElement.scrollWidth - window.innerWidth"


def opened(browser, tmp_path, facts, width):
    path = tmp_path / "parity.html"
    path.write_text(render_page(facts), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800})
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    if folder := os.environ.get("ROUTEREPLAY_TEST_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/parity-{width}.png", full_page=True)
    assert (complaints, asked) == ([], [path.as_uri()])
    return page


def test_the_report_opens_without_a_network_and_shows_text_as_text(browser, tmp_path):
    page = opened(browser, tmp_path, moe_facts(), 1100)

    assert HOSTILE in page.inner_text("p.note b")
    assert "Within the limits" in page.inner_text(".verdict")
    assert page.locator("td.good").count() == 2, "the two figures that have limits"
    for chart in page.locator("svg").all():
        assert min(chart.bounding_box()["width"], chart.bounding_box()["height"]) > 150
    page.click("summary")
    assert HOSTILE in page.inner_text("pre").replace("\\", "")


def test_the_report_fits_a_telephone(browser, tmp_path):
    for facts in (moe_facts(), dense_facts()):
        page = opened(browser, tmp_path, facts, 390)
        assert page.evaluate(ACROSS) <= 0
