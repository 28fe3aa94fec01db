"""How long tests with drawn examples run: a little by default, long under ./scripts/faults."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

LONG = os.environ.get("ROUTEREPLAY_FAULTS") == "all"


class Count:
    """`count.one()` for each example of a module's test."""

    def __init__(self) -> None:
        self.examples = 0

    def one(self) -> None:
        self.examples += 1


@pytest.fixture(scope="module")
def count(request: pytest.FixtureRequest) -> Iterator[Count]:
    """Count the examples of a module, and tell the report of ./scripts/faults of them.

    The module says in `FUZZED` what was drawn.
    """
    found, began, failed = Count(), time.monotonic(), request.session.testsfailed
    yield found
    path = os.environ.get("ROUTEREPLAY_FAULTS_RESULTS")
    if path:
        line = {
            "fuzzed": request.module.FUZZED,
            "examples": found.examples,
            "seconds": time.monotonic() - began,
            "failed": request.session.testsfailed - failed,
        }
        with Path(path).open("a", encoding="utf-8") as results:
            results.write(json.dumps(line) + "\n")
