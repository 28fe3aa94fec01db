"""C: the store's own process is killed, stopped and frozen."""

import time

import pytest
from support.frames import make_upload
from support.oracle import Oracle
from support.route_store import running_store
from support.store_processes import until


@pytest.mark.fault(
    "C1", "the store is killed in the middle of uploads", injected="SIGKILL", short=True
)
def test_c01_a_killed_store_shows_nothing_partial(verdict, tmp_path):
    oracle = Oracle()
    with running_store("embedded", tmp_path) as store:
        for number in range(20):
            assert oracle.put(store.http, make_upload(f"whole-{number}", seed=number))
        half = make_upload("half", seed=99)
        assert store.post(half.chunk_frame(0)).status_code == 200
        store.sidecar.signal(9)
        store.sidecar.wait()
        began = time.monotonic()
        store.sidecar.start()
        until(store.sidecar.is_ready, 30)
        verdict.recovery_s = time.monotonic() - began
        assert store.get("/v1/requests/half/routes").status_code == 404
        assert store.put(half)
        verdict.acked = len(oracle.acked)
        verdict.lost, verdict.wrong = oracle.lost(store.http), oracle.wrong(store.http)
