"""The docs name every setting, metric and error code, and generated pages are current."""

import re
from pathlib import Path

import pytest

from routereplay.cli.reference import PAGES
from routereplay.sidecar.metrics import Metrics
from routereplay.sidecar.settings import Settings
from routereplay.wire.errors import HTTP_STATUS, StoreTimeout, StoreUnreachable

ROOT = Path(__file__).parents[2]
OPERATING = (ROOT / "docs" / "operating.md").read_text()
HTTP = (ROOT / "docs" / "http-api.md").read_text()


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_the_code_says(name):
    """If this fails: python -m routereplay.cli.reference docs."""
    assert (ROOT / "docs" / name).read_text() == PAGES[name]()


def test_every_variable_that_the_code_reads_is_documented_and_no_other():
    read = {f"ROUTEREPLAY_{name.upper()}" for name in Settings.model_fields}
    recorder = (ROOT / "patches/vllm/settings.py").read_text()
    read |= {f"ROUTEREPLAY_{name}" for name in re.findall(r'_positive\(environ, "(\w+)"', recorder)}
    for path in [*ROOT.glob("patches/vllm/*.py"), *ROOT.glob("client/*.py")]:
        read |= set(re.findall(r'"(ROUTEREPLAY_[A-Z_]*[A-Z])"', path.read_text()))

    assert set(re.findall(r"`(ROUTEREPLAY_[A-Z_]+)`", OPERATING)) == read


def test_every_default_of_the_store_is_documented():
    for name, field in Settings.model_fields.items():
        if field.default_factory is None and field.default is not None:
            shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
            assert f"`ROUTEREPLAY_{name.upper()}` | `{shown}`" in OPERATING, name


def test_every_metric_is_documented():
    names = {metric.name for metric in Metrics().registry.collect()}
    text = (ROOT / "patches/vllm/metrics.py").read_text()
    names |= {f"routereplay_recorder{tail}" for tail in re.findall(r'f"\{_P\}(\w+)"', text)}
    text = (ROOT / "patches/replay/watch.py").read_text()
    names |= set(re.findall(r'"(routereplay_training\w+)"', text))

    assert len(names) > 10
    assert {name for name in names if name not in OPERATING} == set()


@pytest.mark.parametrize("error", [*HTTP_STATUS, StoreUnreachable, StoreTimeout])
def test_every_error_code_is_documented_with_its_status_and_class(error):
    if error in HTTP_STATUS:
        row = rf"\| {HTTP_STATUS[error]} \| `{error.code}` \| .* \| `{error.__name__}` \|"
        assert re.search(row, HTTP)
    else:
        assert f"`{error.code}`" in HTTP


def test_every_code_of_the_other_houses_is_documented():
    files = [*ROOT.glob("*/errors.py"), *ROOT.glob("patches/**/*.py")]
    codes = {
        code
        for path in files
        for code in re.findall(r'^    code = "(\w+)"', path.read_text(), re.MULTILINE)
    }
    abstract = {"error", "wire", "store", "transport", "coverage", "patch", "replay", "model"}

    assert len(codes) > 30
    assert {code for code in codes - abstract if f"`{code}`" not in HTTP} == set()
