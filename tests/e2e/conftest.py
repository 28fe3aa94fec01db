"""Writes down which behaviours a real vLLM showed, for docs/compatibility.md.

With ROUTEREPLAY_TEST_WITHOUT_TAP=1 the servers run without the recorder, and each behaviour
test must fail: one that passes would prove nothing.
"""

import importlib.metadata
import json
import os
from pathlib import Path

import pytest

from routereplay.patches.vllm.releases import Release

WITHOUT_TAP = os.environ.get("ROUTEREPLAY_TEST_WITHOUT_TAP") == "1"


@pytest.fixture(scope="session")
def release():
    """The release of the vLLM that is installed."""
    return Release.of(importlib.metadata.version("vllm"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if WITHOUT_TAP and item.get_closest_marker("behaviour") and report.when == "call":
        passed = report.outcome == "passed"
        report.outcome = "failed" if passed else "passed"
        report.longrepr = "passes with the tap removed" if passed else None
    path = os.environ.get("ROUTEREPLAY_TEST_BEHAVIOURS")
    marker = item.get_closest_marker("behaviour")
    # A fixture that fails or skips ends the test in its setup.
    if path and marker and (report.when == "call" or report.outcome != "passed"):
        reason = report.longrepr[2] if report.skipped else ""
        version = importlib.metadata.version("vllm").partition("+")[0]
        with Path(path).open("a") as file:
            for title in marker.args:
                line = {
                    "version": version,
                    "behaviour": title,
                    "outcome": report.outcome,
                    "reason": reason.removeprefix("Skipped: "),
                    "test": item.nodeid,
                }
                file.write(json.dumps(line) + "\n")
    return report
