"""Writes down which behaviours a real vLLM showed, for docs/compatibility.md.

With ROUTEREPLAY_TEST_WITHOUT_TAP=1 the servers run without the recorder, and each behaviour
test must fail: one that passes would prove nothing.
"""

import importlib.metadata
import json
import os
from pathlib import Path

import pytest

WITHOUT_TAP = os.environ.get("ROUTEREPLAY_TEST_WITHOUT_TAP") == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    titles = [title for marker in item.iter_markers("behaviour") for title in marker.args]
    if WITHOUT_TAP and titles and report.when == "call" and not report.skipped:
        passed = report.outcome == "passed"
        report.outcome = "failed" if passed else "passed"
        report.longrepr = "passes with the tap removed" if passed else None
    path = os.environ.get("ROUTEREPLAY_TEST_BEHAVIOURS")
    # A fixture that fails or skips ends the test in its setup.
    if path and (report.when == "call" or report.outcome != "passed"):
        reason = report.longrepr[2] if report.skipped else ""
        line = {
            "version": _version(),
            "outcome": report.outcome,
            "reason": reason.removeprefix("Skipped: "),
            "test": item.nodeid,
            "without_tap": WITHOUT_TAP,
        }
        with Path(path).open("a") as file:
            for title in titles:
                file.write(json.dumps({**line, "behaviour": title}) + "\n")
    return report


def _version():
    """`0.30.0`, or `0.26.0 on CUDA`: the builds differ in kernels, graphs and schedulers."""
    number, _, build = importlib.metadata.version("vllm").partition("+")
    return number if build == "cpu" else f"{number} on CUDA"
