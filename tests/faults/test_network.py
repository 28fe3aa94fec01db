"""B1 to B9: packets, connections and names fail between a recorder or a client and the store."""

import subprocess
import time

import pytest
from faults import needs
from faults.driving import EngineLoop, compare_steps, judge, rejoined
from faults.networks import HOST, Network
from support.frames import make_upload
from support.oracle import Oracle
from support.toxic_proxy import ToxicProxy, Toxics

from routereplay.client import RouteStoreClient


@pytest.fixture
def network():
    needs.root()
    needs.program("ip", "tc", "nft")
    with Network() as built:
        yield built


@pytest.fixture
def far(store, network):
    """The store as the other side of the cable reaches it."""
    with ToxicProxy(store.sidecar.port, host=HOST) as proxy:
        yield proxy


@pytest.mark.fault("B1", "30 % of packets are lost", injected="nftables numgen in a namespace")
def test_b1_lost_packets_cost_time_only(verdict, store, network, far, tmp_path):
    spool = tmp_path / "spool"
    with EngineLoop(tmp_path / "b1", far.url, within=network.within, spool_dir=spool) as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        network.filter("tcp sport != 0 numgen random mod 100 < 30 drop")
        before = loop.report()["acked"]["rows"]
        time.sleep(8)
        during = loop.report()["acked"]["rows"] - before
        verdict.recovery_s = rejoined(loop, network.unfilter)
        report = loop.drain()
        judge(verdict, store.sidecar.url, loop)
    assert report["dropped"] == {}
    verdict.note = f"{during} rows arrived in the 8 s with losses"


@pytest.mark.fault("B2", "a link of 1 Mbit/s", injected="tc tbf in a namespace")
def test_b2_a_slow_link_fills_the_spool(verdict, store, network, far, tmp_path):
    settings = {"spool_dir": tmp_path / "spool", "queue_bytes": 16 << 20}
    with EngineLoop(tmp_path / "b2", far.url, within=network.within, **settings) as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        network.slow("1mbit")
        report = loop.until(lambda r: r["spooled"]["rows"] > 1000, 90)
        assert report["most_held"] <= 16 << 20
        verdict.recovery_s = rejoined(loop, network.unslow)
        report = loop.drain()
        judge(verdict, store.sidecar.url, loop)
    assert report["dropped"] == {}


@pytest.mark.fault("B2", "a slow link", injected="a proxy at 125 kB/s, on and off")
def test_b2_the_engine_does_not_notice(verdict, store, proxy, set_toxics, tmp_path):
    with EngineLoop(tmp_path / "b2on", proxy.url, spool_dir=tmp_path / "spool") as loop:
        slow = set_toxics(bytes_per_s=125_000)
        verdict.note = compare_steps(loop, slow, set_toxics())
        loop.drain()
        judge(verdict, store.sidecar.url, loop)


@pytest.mark.fault("B3", "answers do not come through", injected="nftables, one way")
def test_b3_a_partition_of_one_way_heals(verdict, store, network, far, tmp_path):
    settings = {"spool_dir": tmp_path / "spool", "request_timeout_s": 2}
    with EngineLoop(tmp_path / "b3", far.url, within=network.within, **settings) as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        network.filter(f"ip saddr {HOST} drop")
        loop.until(lambda r: r["store_away"] and r["spooled"]["rows"] > 0, 90)
        verdict.recovery_s = rejoined(loop, network.unfilter)
        report = loop.drain()
        judge(verdict, store.sidecar.url, loop)
    assert report["dropped"] == {}
    verdict.note = f"{report['events'].get('replayed', 0)} frames were replays"


@pytest.mark.fault("B4", "connections are reset in mid-body", injected="a proxy", short=True)
def test_b4_a_reset_shows_nothing_partial(verdict, store, proxy, tmp_path):
    with EngineLoop(tmp_path / "b4", proxy.url) as loop:
        for toxics in (Toxics(cut_request_at=20_000), Toxics(reset_response_at=60)):
            loop.until(lambda r: r["acked"]["rows"] > 0)
            proxy.toxics = toxics
            proxy.drop_connections()
            errors = loop.report()["events"].get("store_error", 0)
            loop.until(lambda r, errors=errors: r["events"].get("store_error", 0) >= errors + 3)
            proxy.toxics = Toxics()
            verdict.recovery_s = rejoined(loop, proxy.drop_connections)
        report = loop.drain()
        judge(verdict, store.sidecar.url, loop)
    assert report["dropped"] == {}
    # And a reader: every reset position gives the right routes or an error.
    upload = store.put(make_upload("b4", seed=1))
    for position in (0, 100, 250, 900):
        proxy.toxics, proxy.struck = Toxics(reset_response_at=position, once=True), 0
        with RouteStoreClient(proxy.url) as client:
            verdict.wrong += int((client.fetch_request("b4").experts != upload.experts).any())


@pytest.mark.fault("B6", "a byte of a request is flipped", injected="a proxy")
def test_b6_a_flipped_request_is_refused_and_sent_again(verdict, store, proxy, tmp_path):
    with EngineLoop(tmp_path / "b6up", proxy.url) as loop:
        loop.until(lambda r: r["acked"]["rows"] > 0)
        for position in range(500, 60_000, 4001):
            proxy.toxics, proxy.struck = Toxics(flip_request_at=position, once=True), 0
            proxy.drop_connections()
            rejoined(loop, lambda: None)
        proxy.toxics = Toxics()
        report = loop.drain()
        found = judge(verdict, store.sidecar.url, loop, dropped=True)
    assert len(found.dropped) <= 1, found.dropped
    verdict.note = f"15 flips, {report['events'].get('store_error', 0)} refusals"


@pytest.mark.fault("B7", "a byte at a time", injected="a proxy", short=True)
def test_b7_slices_of_one_byte_are_put_together(verdict, store, proxy):
    oracle = Oracle()
    proxy.toxics = Toxics(slice_bytes=1)
    import httpx

    with httpx.Client(base_url=proxy.url, timeout=60, trust_env=False) as http:
        upload = make_upload("b7", seed=1)
        assert oracle.put(http, upload)
    with RouteStoreClient(proxy.url) as client:
        verdict.wrong += int((client.fetch_request("b7").experts != upload.experts).any())
    verdict.acked = len(oracle.acked)
    verdict.lost, verdict.wrong = oracle.lost(store.http), verdict.wrong + oracle.wrong(store.http)
    verdict.load = "one record each way"


@pytest.mark.fault("B8", "the store moves", injected="/etc/hosts in a mount namespace")
def test_b8_a_name_that_leads_elsewhere_is_looked_up_again(verdict, store, tmp_path):
    needs.root()
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost routestore\n")
    private = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
    if subprocess.run([*private, "true"], capture_output=True).returncode:
        pytest.skip("cannot mount over /etc/hosts in a namespace of its own")
    with ToxicProxy(store.sidecar.port) as old:
        url = f"http://routestore:{old.port}"
        with EngineLoop(tmp_path / "b8", url, within=private) as loop:
            loop.until(lambda r: r["acked"]["rows"] > 0)
            with ToxicProxy(store.sidecar.port, host="127.0.0.2", port=old.port):
                hosts.write_text("127.0.0.2 localhost routestore\n")
                old.toxics = Toxics(refuse=True)
                verdict.recovery_s = rejoined(loop, old.drop_connections)
                loop.until(lambda r: r["records"].get("sealed", 0) > 100)
                report = loop.drain()
                judge(verdict, store.sidecar.url, loop)
    assert report["dropped"] == {}


@pytest.mark.fault(
    "B9", "idle connections are closed just before use", injected="a proxy", short=True
)
def test_b9_a_closed_idle_connection_is_no_error(verdict, store, proxy, tmp_path):
    upload = store.put(make_upload("b9", seed=1))
    with (
        EngineLoop(tmp_path / "b9", proxy.url, rate=4) as loop,
        RouteStoreClient(proxy.url, attempts=1) as client,
    ):
        for _ in range(30):
            proxy.drop_connections()
            time.sleep(0.1)
            verdict.wrong += int((client.fetch_request("b9").experts != upload.experts).any())
        report = loop.drain()
        judge(verdict, store.sidecar.url, loop)
    assert report["dropped"] == {}
    verdict.load = "4 requests/s, 30 reads"
    verdict.note = "no read failed with one attempt"
