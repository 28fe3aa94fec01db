"""A real Chromium, headless, and a filled store that it looks at."""

import os
import shutil
from pathlib import Path

import pytest
from support.populated import populate
from support.route_store import running_store
from support.tab import Tab

CHROMIUM = (
    os.environ.get("ROUTEREPLAY_TEST_CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("google-chrome")
)
_QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with running_store("embedded", tmp_path_factory.mktemp("page")) as running:
        populate(running)
        yield running


@pytest.fixture(scope="module")
def browser():
    # Not for the session: while it is open playwright's loop counts as running in this thread,
    # and asyncio.run() fails in whatever test comes after.
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(
            executable_path=CHROMIUM, args=list(_QUIET), env={**os.environ, **_unpacked()}
        )


def _unpacked():
    """Variables for a Chromium that scripts/environment unpacked and did not install."""
    libraries = os.environ.get("ROUTEREPLAY_TEST_CHROMIUM_LIBRARIES")
    if not libraries:
        return {}
    # Fonts are found below the user's data, with and without a configuration of fontconfig.
    share = Path(CHROMIUM).parents[2] / "share"
    return {"LD_LIBRARY_PATH": libraries, "XDG_DATA_HOME": str(share)}


@pytest.fixture
def tab(browser, store):
    """A tab; a test fails if anything complains in it or it asks for anything but the store."""
    tab = Tab(browser, store)
    yield tab
    tab.context.close()
    assert tab.complaints == []
    assert [url for url in tab.asked if not url.startswith((tab.store_url, "data:", "blob:"))] == []
