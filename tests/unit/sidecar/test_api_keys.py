"""Keys are checked in constant steps, kept as digests, and never taken from a doubtful file."""

import hmac
from datetime import UTC, datetime, timedelta

import pytest

from routereplay.sidecar.auth import keys as api_keys
from routereplay.sidecar.auth.exposure import is_loopback
from routereplay.sidecar.auth.key_store import WatchedKeys, read_key_file, write_key_file
from routereplay.sidecar.auth.keys import KeyFile, KeyRing, new_key, parse_key_file
from routereplay.sidecar.errors import KeyFileInvalid
from routereplay.wire.errors import Unauthenticated

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_key_names_its_holder():
    made = new_key(["read"], namespace="team-a")
    principal = KeyRing([made.key]).principal(made.text, NOW)

    assert (principal.key_id, principal.namespace) == (made.key.id, "team-a")
    assert principal.may("read")
    assert not principal.may("write")


@pytest.mark.parametrize("change", ["known", "wrong secret", "unknown id", "no key at all"])
def test_every_text_costs_one_comparison(monkeypatch, change):
    made, other = new_key(["read"]), new_key(["read"])
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(
        api_keys.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b)
    )
    text = {
        "known": made.text,
        "wrong secret": made.text[:-1] + ("0" if made.text[-1] != "0" else "1"),
        "unknown id": other.text,
        "no key at all": "",
    }[change]
    try:
        KeyRing([made.key]).principal(text, NOW)
        known = True
    except Unauthenticated:
        known = False

    assert known is (change == "known")
    assert [len(a) == len(b) == 64 for a, b in compared] == [True]


def test_a_key_ends_when_it_says():
    made = new_key(["read"], not_after=NOW)
    ring = KeyRing([made.key])

    assert ring.principal(made.text, NOW - timedelta(seconds=1))
    with pytest.raises(Unauthenticated, match="2026-01-01"):
        ring.principal(made.text, NOW)


def test_a_file_holds_no_secret_and_is_for_its_owner(tmp_path):
    path = tmp_path / "keys.json"
    made = new_key(["read", "write"], note="rack 3")
    write_key_file(path, KeyFile(keys=(made.key,)))

    assert made.text.split("_")[2] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key_file(path).keys == (made.key,)
    assert [name.name for name in tmp_path.iterdir()] == ["keys.json"]


GOOD = '{"version":1,"keys":[{"id":"a","digest":"%s","scopes":["read"]}]}' % ("0" * 64)


@pytest.mark.parametrize(
    ("found", "changed"),
    [
        ("", None),
        ("[]", None),
        ('"id":"a"', '"id":"A_"'),
        ('"scopes":["read"]', '"scopes":["root"]'),
        ('"scopes":["read"]', '"scopes":[]'),
        ('"scopes":["read"]', '"scopes":["read"],"namespace":"a/b"'),
        ('"scopes":["read"]', '"scopes":["read"],"namespace":"{a}"'),
        ('"scopes":["read"]', '"scopes":["read"],"not_after":"2026-01-01T00:00:00"'),
        ('"scopes":["read"]', '"scopes":["read"],"nmespace":"typo"'),
        ("0000", "00"),
        ('"version":1', '"version":2'),
        ("}]}", '},{"id":"a","digest":"%s","scopes":["read"]}]}' % ("1" * 64)),
    ],
)
def test_a_file_that_is_not_right_is_refused(found, changed):
    assert parse_key_file(GOOD.encode(), "good").keys
    text = found if changed is None else GOOD.replace(found, changed, 1)
    with pytest.raises(KeyFileInvalid):
        parse_key_file(text.encode(), "keys.json")


def test_a_file_that_anybody_may_change_is_refused(tmp_path):
    path = tmp_path / "keys.json"
    write_key_file(path, KeyFile())
    path.chmod(0o666)
    with pytest.raises(KeyFileInvalid, match="chmod o-w"):
        read_key_file(path)


def test_a_file_that_is_gone_keeps_the_keys_as_they_were(tmp_path):
    path = tmp_path / "keys.json"
    made = new_key(["read"])
    write_key_file(path, KeyFile(keys=(made.key,)))
    watched = WatchedKeys(path)
    watched.load()
    path.unlink()

    assert watched.refresh() is False
    assert watched.ring.principal(made.text, NOW)
    write_key_file(path, KeyFile())
    assert watched.refresh() is True
    assert len(watched.ring) == 0


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("store.example", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_what_only_this_machine_reaches(host, expected):
    assert is_loopback(host) is expected
