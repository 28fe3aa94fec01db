"""The page in a real browser, against a real store."""

import numpy as np
import pytest
from support.frames import make_upload
from support.keys import Keys
from support.populated import HOSTILE, conversation
from support.route_store import running_store
from support.tab import Tab

PIXELS = """canvas => {
    const {width, height} = canvas;
    const {data} = canvas.getContext('2d').getImageData(0, 0, width, height);
    return {width, height, data: [...data]};
}"""


def pixels(page, where):
    found = page.locator(where).first.evaluate(PIXELS)
    return np.array(found["data"]).reshape(found["height"], found["width"], 4)


def test_the_store_is_shown_live(tab, store):
    page = tab.open("/")
    page.wait_for_selector("text=episode-tilted")
    assert "Valkey" in page.inner_text("#state")
    assert "Dropped in the last 15 minutes: queue_full." in page.inner_text("#alarms")
    assert "cannot be real routes: zero_rows" in page.inner_text("#alarms")
    tab.screenshot("overview")

    store.put(make_upload("sealed-while-you-look", seed=900))

    page.wait_for_selector("text=sealed-while-you-look")


def test_what_came_with_routes_is_text_and_never_markup(tab):
    page = tab.open("/")
    page.wait_for_selector("text=chatcmpl-hostile")

    assert HOSTILE in tab.text()
    page.click("text=chatcmpl-hostile")
    page.wait_for_selector("canvas[role=img]")
    assert HOSTILE in tab.text()
    page.fill("#search input", HOSTILE)
    page.press("#search input", "Enter")
    page.wait_for_selector("text=never seen by this store")
    assert page.locator("img").count() == 0
    # The browser says of each id that it does not know what we say: 404.
    tab.complaints = [said for said in tab.complaints if "404" not in said]


def test_the_heat_map_shows_the_counts_of_the_store(tab, store):
    page = tab.open("/#/trajectory/episode-3")
    page.wait_for_selector("canvas[role=img]")
    tab.screenshot("trajectory")
    counts = np.array(store.get("/v1/trajectories/episode-3/experts").json()["counts"])

    shown = pixels(page, "canvas[role=img]")

    assert shown.shape[:2] == counts.shape
    assert "dense" in tab.text()
    darkness = 765 - shown[..., :3].sum(-1)
    for layer in range(1, len(counts)):
        assert np.array_equal(counts[layer][np.argsort(darkness[layer])], np.sort(counts[layer]))


def test_a_turn_is_picked_and_its_own_rows_are_shown(tab, store):
    page = tab.open("/#/trajectory/episode-3")
    page.wait_for_selector("text=Experts, all turns")
    rows = store.get("/v1/trajectories/episode-3/experts", turn=2).json()["rows"]

    page.click("#picks >> text=Turn 2")

    page.wait_for_selector("text=Experts, turn 2")
    assert f"{rows} rows" in page.inner_text("#heat h2")
    page.hover("canvas[role=img]", position={"x": 300, "y": 200})
    assert "the mean" in page.inner_text("#tip")


def test_the_layer_in_which_two_policies_differ_is_named(tab):
    page = tab.open("/#/compare?a=policy:41&b=policy:42")

    page.wait_for_selector("#verdict")

    assert "Layer 12 differs most" in page.inner_text("#verdict")
    tab.screenshot("compare")
    page.fill("input[name=b]", "trajectory:episode-1")
    page.fill("input[name=a]", "trajectory:episode-2")
    page.click("#pair button")
    page.wait_for_function(
        "() => document.querySelector('#verdict')?.textContent.includes('No layer')"
    )


def test_models_of_two_shapes_are_not_compared(tab):
    page = tab.open("/#/compare?a=trajectory:episode-1&b=request:chatcmpl-hostile")

    page.wait_for_selector("text=They come from models of different shapes")


def test_an_id_is_found_by_what_it_is(tab):
    page = tab.open("/")
    page.fill("#search input", "chatcmpl-episode-1-0")
    page.press("#search input", "Enter")

    page.wait_for_selector("text=trajectory episode-1")
    assert page.url.endswith("#/request/chatcmpl-episode-1-0")
    tab.complaints = [said for said in tab.complaints if "404" not in said]


def test_a_store_that_went_away_is_said_and_found_again(tab):
    page = tab.open("/")
    page.wait_for_selector("text=Latest trajectories")

    tab.context.set_offline(True)
    page.wait_for_selector("text=The store does not answer")
    tab.context.set_offline(False)

    page.wait_for_selector("text=Latest trajectories")
    tab.complaints = [said for said in tab.complaints if "net::ERR_" not in said]


@pytest.mark.parametrize("path", ["/", "/#/trajectory/episode-3", "/docs"])
def test_light_dark_and_narrow_screens_are_served(browser, store, path):
    grounds = []
    for options in ({"color_scheme": "light"}, {"color_scheme": "dark"}):
        page = browser.new_page(viewport={"width": 390, "height": 800}, **options)
        page.goto(store.sidecar.url + path)
        page.wait_for_selector("h2")
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        # Only tables scroll sideways, the page never does.
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.close()
    assert len(set(grounds)) == 2


def test_the_docs_name_every_operation(tab, store):
    page = tab.open("/docs")
    text = page.inner_text("main")

    for path in store.get("/openapi.json").json()["paths"]:
        assert path in text
    tab.screenshot("docs")


def test_the_page_may_run_nothing_but_itself(tab):
    page = tab.open("/")
    page.wait_for_selector("h2")

    answer = page.evaluate(
        """() => {
            try { document.body.innerHTML = '<b>x</b>'; return 'parsed'; }
            catch (error) { return error.name; }
        }"""
    )

    assert answer == "TypeError"
    tab.complaints = [said for said in tab.complaints if "TrustedHTML" not in said]


def test_a_store_with_keys_asks_for_one_and_the_page_keeps_it_to_itself(browser, tmp_path):
    keys = Keys(tmp_path)
    key = keys.make("read")
    with running_store("embedded", tmp_path, keys_file=keys.path) as locked:
        tab = Tab(browser, locked)
        page = tab.open("/")
        page.wait_for_selector("text=This store wants a key")
        tab.screenshot("key")
        page.fill("#key input", "rr_wrong_wrong")
        page.click("#key button")
        page.wait_for_selector("text=This store wants a key")
        page.fill("#key input", key)
        page.click("#key button")
        page.wait_for_selector("text=Nothing is recorded yet")
        page.reload()
        page.wait_for_selector("text=Nothing is recorded yet")

        # A link cannot carry the key: what it leads to is fetched and handed over.
        with tab.context.expect_page() as opened:
            page.click("text=Summary as JSON")
        assert '"ready":true' in opened.value.inner_text("body")
        assert key not in page.content()
        assert [url for url in tab.asked if key in url] == []
        page.click("#forget")
        page.wait_for_selector("text=This store wants a key")
        tab.context.close()
    assert [said for said in tab.complaints if "401" not in said] == []


def test_rows_of_a_wide_model_fit_the_screen(tab, store):
    for upload in conversation("wide", 1, seed=77, num_experts=384, topk=8, num_layers=61):
        store.put(upload)
    page = tab.open("/#/trajectory/wide")
    page.wait_for_selector("canvas[role=img]")

    assert pixels(page, "canvas[role=img]").shape[:2] == (61, 384)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.screenshot("wide")
