"""One store a module and an engine: the embedded Valkey, and Debian's Redis.

With ROUTEREPLAY_TEST_ENGINES=cluster, as ./scripts/faults does, one Valkey in cluster mode.
"""

import os

import pytest
from support.route_store import running_store

ENGINES = ["embedded", pytest.param("redis7", marks=pytest.mark.redis)]
if os.environ.get("ROUTEREPLAY_TEST_ENGINES") == "cluster":
    ENGINES = ["cluster"]


@pytest.fixture(scope="module", params=ENGINES)
def store(request, tmp_path_factory):
    """A store with the settings that a user gets, shared by the tests of a module."""
    with running_store(request.param, tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="module", params=ENGINES)
def short_lived(request, tmp_path_factory):
    """A store that forgets: records after one second, what it knew of them much later."""
    folder = tmp_path_factory.mktemp("short")
    with running_store(request.param, folder, ttl_s=1, staging_ttl_s=1) as running:
        yield running


@pytest.fixture
def own_store(request, tmp_path):
    """A store of one test, which may break it; `request.param` names the engine."""
    with running_store(request.param, tmp_path, graceful_shutdown_s=2) as running:
        yield running
