"""docs/troubleshooting.md has an entry for every code that a user can meet, and no other."""

import re
from pathlib import Path

import routereplay.client.errors
import routereplay.parity.errors
import routereplay.patches.errors
import routereplay.patches.models.errors
import routereplay.patches.replay.errors
import routereplay.patches.vllm.canary
import routereplay.patches.vllm.install
import routereplay.patches.vllm.refusals
import routereplay.sidecar.errors  # noqa: F401
from routereplay.cli.options import PAGE_OF_CODES, advice_for
from routereplay.wire.errors import RouteReplayError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
ENTRIES = re.findall(r"^### (\w+)\n\n(.+?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)


def subclasses(of):
    """Every class below `of` that is not a mere parent of others."""
    below = of.__subclasses__()
    found = set() if below else {of}
    return found.union(*(subclasses(one) for one in below)) if below else found


def codes():
    """Codes of our errors, of the store's answers, and of the command."""
    found = {
        error.code
        for error in subclasses(RouteReplayError)
        if error.__module__.startswith("routereplay")
    }
    for path in ROOT.glob("cli/**/*.py"):
        found |= set(re.findall(r'(?:fail|tell)\(\s*"(\w+)"', path.read_text()))
    for path in ROOT.glob("sidecar/api/*.py"):
        found |= set(re.findall(r'problem\(\d+, "(\w+)"', path.read_text()))
        found |= {
            name
            for pair in re.findall(r'code = "(\w+)" if .* else "(\w+)"', path.read_text())
            for name in pair
        }
    return found


def test_every_code_has_one_entry_and_no_entry_is_stale():
    named = [code for code, _ in ENTRIES]

    assert len(named) == len(set(named))
    assert set(named) == codes()
    assert len(named) > 50


def test_the_codes_that_the_test_found_hold_those_of_every_house():
    assert codes() >= {
        *("not_found", "missing_routes", "replay_incomplete", "unknown_model", "canary_failed"),
        *("unsupported_engine", "patch_overlap", "exposed_without_keys"),
        *("conversion", "missing_package", "no_such_endpoint", "http", "internal"),
    }


def test_every_entry_says_more_than_the_code():
    for code, text in ENTRIES:
        assert len(text.split()) >= 10, code


def test_the_command_leads_from_every_code_to_its_entry():
    for code in codes():
        assert f"{PAGE_OF_CODES}#{code}" in advice_for(code)
