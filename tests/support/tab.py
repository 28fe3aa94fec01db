"""A tab of a browser that looks at a store."""

from __future__ import annotations

import os


class Tab:
    """A tab that remembers every complaint and every address that it asked for."""

    def __init__(self, browser, store, **options):
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
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
