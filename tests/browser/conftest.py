"""A real Chromium, headless, and a filled store that it looks at."""

import os
import shutil

import pytest
from support.populated import populate
from support.route_store import running_store

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with running_store("embedded", tmp_path_factory.mktemp("page")) as running:
        populate(running)
        yield running


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=list(_QUIET))


class Tab:
    """A tab that remembers every complaint and every address that it asked for."""

    def __init__(self, browser, store, **options):
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.store_url = store.sidecar.url
        self.complaints, self.asked = [], []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("console", self._said)
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _said(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self, path):
        self.page.goto(self.store_url + path)
        return self.page

    def text(self):
        return self.page.inner_text("main")

    def screenshot(self, name):
        """Keep a picture for people, in $ROUTEREPLAY_TEST_SCREENSHOTS."""
        if folder := os.environ.get("ROUTEREPLAY_TEST_SCREENSHOTS"):
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)


@pytest.fixture
def tab(browser, store):
    """A tab; a test fails if anything complains in it or it asks for anything but the store."""
    tab = Tab(browser, store)
    yield tab
    tab.context.close()
    assert tab.complaints == []
    assert [url for url in tab.asked if not url.startswith((tab.store_url, "data:", "blob:"))] == []
