"""What end-to-end tests share."""

import importlib.metadata

import pytest
from support.behaviours import pytest_runtest_makereport as pytest_runtest_makereport

from routereplay.patches.vllm.releases import Release


@pytest.fixture(scope="session")
def release():
    """The release of the vLLM that is installed."""
    return Release.of(importlib.metadata.version("vllm"))
