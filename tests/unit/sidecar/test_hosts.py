"""Names that a page in a browser cannot have."""

import pytest

from routereplay.sidecar.auth.hosts import is_local_name
from routereplay.sidecar.settings import Settings

NONE = frozenset()


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8400", "10.1.2.3:80", "[::1]:8400", "[::1]", "localhost:8400"),
        *("store:8400", "STORE", "store.rl.svc.cluster.local:8400", "host.docker.internal"),
        "a.local.",
    ],
)
def test_addresses_and_local_names_are_right(host):
    assert is_local_name(host, NONE)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8400", "127.0.0.1.evil.example", "local.evil.example", ""),
        *("a.local.example", "127.0.0.1:8400@evil.example", "[::1].evil.example", ":8400"),
        "xlocal.co",
    ],
)
def test_a_name_that_can_be_registered_is_not(host):
    assert not is_local_name(host, NONE)


def test_names_that_are_allowed_are_right():
    names = Settings(allowed_hosts=" Store.Example.com, other.example ").host_names
    assert is_local_name("store.example.com:443", names)
    assert not is_local_name("evil.example", names)
    assert is_local_name("evil.example", Settings(allowed_hosts="*").host_names)
