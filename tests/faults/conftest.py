"""A fault test has `@pytest.mark.fault(row, fault, injected=...)` and fills in a `verdict`.

`./scripts/test` runs those marked `short=True`, `./scripts/faults` runs all and writes
docs/faults.md. What a machine may lack is asked for with `faults.needs`, so that the report
says which rows it could not show.
"""

from __future__ import annotations

import os
import subprocess

import pytest
from faults import needs
from faults.verdict import LONGEST_RATIO, Verdict, p99_ms
from support.route_store import running_store
from support.toxic_proxy import ToxicProxy, Toxics

ALL = os.environ.get("ROUTEREPLAY_FAULTS") == "all"


def pytest_collection_modifyitems(items):
    for item in items:
        mark = item.get_closest_marker("fault")
        if mark and not ALL and not mark.kwargs.get("short"):
            item.add_marker(pytest.mark.skip(reason="a long fault test: ./scripts/faults runs it"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if call.when == "call":
        reason = str(call.excinfo.value) if report.skipped and call.excinfo else ""
        item.stash[_OUTCOME] = report.outcome, reason


_OUTCOME = pytest.StashKey[tuple[str, str]]()


@pytest.fixture
def verdict(request):
    """The row of the report that this test fills in."""
    mark = request.node.get_closest_marker("fault")
    row, fault = mark.args
    found = Verdict(row, fault, mark.kwargs["injected"])
    yield found
    outcome, reason = request.node.stash.get(_OUTCOME, ("failed", ""))
    if outcome == "passed" and (found.lost or found.wrong):
        outcome = "failed"
    found.write(outcome, reason)
    if found.with_recorder:
        ours, theirs = p99_ms(found.with_recorder), p99_ms(found.without_recorder)
        assert ours <= LONGEST_RATIO * theirs, f"p99 of a step {ours} ms, without {theirs} ms"
    assert found.lost == 0, f"{found.lost} of {found.acked} acknowledged records are lost"
    assert found.wrong == 0, f"{found.wrong} reads returned other bytes than were stored"


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A real store on its own Valkey, shared: each test has request ids of its own."""
    with running_store("embedded", tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def proxy(store):
    """What stands between a recorder or a client and the store."""
    with ToxicProxy(store.sidecar.port) as toxic:
        yield toxic


@pytest.fixture
def set_toxics(proxy):
    def to(**toxics):
        def switch():
            proxy.toxics = Toxics(**toxics)
            proxy.drop_connections()

        return switch

    return to


@pytest.fixture
def blackhole():
    """`heal = blackhole(port)`: packets to a port of this machine vanish."""
    needs.root()
    needs.program("nft")
    made = []

    def nft(command):
        subprocess.run(["nft", command], check=True)

    def heal():
        if made:
            made.pop()
            nft("delete table inet routereplay")

    def cut(port):
        nft("add table inet routereplay")
        made.append(port)
        nft("add chain inet routereplay out { type filter hook output priority 0; }")
        nft(f"add rule inet routereplay out tcp dport {port} drop")
        return heal

    yield cut
    heal()
