"""What Redis Cluster asks of us, read off the source: tests on one node would not notice."""

import asyncio
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routereplay.sidecar.store import keys
from routereplay.sidecar.store.base import RecordKey
from routereplay.sidecar.store.redis_looks import Looks
from routereplay.wire.ids import normalize_id

SIDECAR = Path(__file__).parents[3] / "sidecar"
ALL_SCRIPTS = {path.name: path for path in (SIDECAR / "scripts").glob("*.lua")}
OF_ONE_ENGINE = ALL_SCRIPTS.pop("look.lua")
SCRIPTS = sorted(ALL_SCRIPTS.values())
SOURCES = [path for path in SIDECAR.rglob("*.py") if "redis." in path.read_text()]

FORBIDDEN = (
    "keys|scan|scan_iter|sscan|hscan|select|move|rename|renamenx|mset|msetnx|flushall|flushdb|"
    "randomkey|dbsize|eval|psubscribe|subscribe|pubsub|multi|swapdb|object|monitor|migrate"
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_declares_itself_and_every_key(path):
    text = path.read_text()
    calls = re.findall(r"redis\.call\('(\w+)', ([^,)]+)", text)
    passed_on = re.findall(r"live_at_least\((\w+\[?\d*\]?)", text)

    assert text.startswith("#!lua")
    # The clock has no key.
    assert len(calls) == text.count("redis.call(") - text.count("redis.call('TIME')")
    assert all(re.fullmatch(r"KEYS\[\w+\]|key", key) for _, key in calls), calls
    assert all(re.fullmatch(r"KEYS\[\d+\]|key", key) for key in passed_on), passed_on


def test_the_script_that_finds_keys_by_what_it_reads_writes_nothing_and_meets_no_cluster():
    class Cluster:
        together = False

        def __init__(self):
            self.commands = []

        async def run(self, *commands):
            self.commands += commands
            return [b"default/r:a a" if one[0] == "GET" else [] for one in commands]

    cluster = Cluster()
    looks = Looks(cluster)
    assert asyncio.run(looks.named("default/i:a")) == []
    assert asyncio.run(looks.trajectory("default/t:a")) == []
    assert asyncio.run(looks.ahead(["default/i:a"], ["default/t:a", "default/t:b"])) == {}

    assert OF_ONE_ENGINE.read_text().startswith("#!lua flags=no-writes\n")
    assert [command[0] for command in cluster.commands] == ["GET", "HGETALL", "SMEMBERS"]


def test_no_command_is_used_that_looks_beyond_one_slot():
    found = [
        f"{path.name}: {match}"
        for path in SOURCES
        for match in re.findall(
            rf"(?:client|pipe|_client|redis)\.({FORBIDDEN})\(", path.read_text(), re.IGNORECASE
        )
    ]

    assert len(SOURCES) > 5
    assert found == []


NAMESPACES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True)
TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["a/i:b", "x/t:y", "default/r:a", "{a}", "}{", "", "a:b", "r:a", "t:a", "\0"]),
)


def tag_in(key):
    """The part that Redis Cluster hashes: the first non-empty {...}."""
    return re.search(r"\{([^}]+)\}", key)[1]


@given(NAMESPACES, TEXTS, TEXTS, st.booleans())
def test_everything_of_a_trajectory_has_one_tag(namespace, request, trajectory, alone):
    request_id, trajectory_id = normalize_id(request), normalize_id(trajectory)
    tag = keys.tag_of(namespace, request_id, None if alone else trajectory_id)
    key = RecordKey(tag, request_id, 0)
    names = [
        keys.requests(tag),
        keys.status(tag, request_id),
        keys.upload(tag, "0_up"),
        keys.record(key),
        keys.arrived(tag),
        keys.barrier(tag),
        keys.blob(tag, "0_up", "c0", b"\0" * 16, 10, 0),
    ]

    assert {tag_in(name) for name in names} == {tag}
    assert len(set(names)) == len(names)


@given(NAMESPACES, TEXTS, NAMESPACES, TEXTS)
def test_two_namespaces_never_share_a_key(one, first, other, second):
    a, b = normalize_id(first), normalize_id(second)

    def names(namespace, item_id):
        return {
            keys.pointer(keys.name_of(namespace, item_id)),
            keys.requests(keys.tag_of(namespace, item_id, None)),
            keys.requests(keys.trajectory_tag(namespace, item_id)),
            keys.journal(namespace),
        }

    mine, theirs = names(one, a), names(other, b)
    assert len(mine) == 4
    if one != other:
        assert not mine & theirs
    elif a != b:
        assert mine & theirs == {keys.journal(one)}
