"""D: the engine is frozen, full, misconfigured, flushed, a replica, or another one."""

import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from support.engines import Cluster, Engine, follow
from support.frames import make_upload
from support.load import Load
from support.rig import rig
from support.store_processes import Sidecar, until
from support.toxic_proxy import ToxicProxy

READERS = 200


@pytest.mark.fault("D8", "the engine freezes for 4 s under load", injected="SIGSTOP", short=True)
def test_d08_a_frozen_engine_is_a_503_in_time_and_heals(verdict, tmp_path):
    with rig(tmp_path) as found, Load(found.url, threads=8) as load:
        load.wait_for(20)
        found.engine.signal(signal.SIGSTOP)
        frozen = time.monotonic()
        time.sleep(4)
        found.engine.signal(signal.SIGCONT)
        thawed = time.monotonic()
        load.wait_for(20)
        load.stop()
        during = load.between(frozen, thawed - 2)
        verdict.recovery_s = load.first_success_after(thawed)
        slowest = max(answer.seconds for answer in during)
        verdict.note = f"the slowest of {len(during)} refusals took {slowest:.1f} s"
        assert {answer.status for answer in during} == {503}
        # 1.5 s is the store's; the rest is for eight clients and two stores on two cores.
        assert slowest < 2.5
        assert verdict.recovery_s < 3
        load.judge(verdict)


@pytest.mark.fault("D9", "the engine's memory is used up", injected="maxmemory of 24 MB")
def test_d09_a_full_engine_keeps_what_it_has_and_recovers(verdict, tmp_path):
    options = ("--maxmemory", 24 * 1024 * 1024)
    with rig(tmp_path, *options) as found:
        with Load(found.url, prompt_len=2000, chunk_rows=1000) as load:
            until(lambda: any(answer.status == 503 for answer in load.answers), 60)
            full = time.monotonic()
            time.sleep(1)
            assert load.answers[-1].status == 503
            first = load.acked[0].manifest.request_id
            assert found.get(f"/v1/requests/{first}/routes").status_code == 200
            lost = make_upload("lost-when-full", seed=1).drop_frame()
            assert found.post(lost).status_code == 200
            removed = [load.acked.pop(0) for _ in range(len(load.acked) // 2)]
            for upload in removed:
                load.offered.remove(upload)
                name = upload.manifest.request_id
                assert found.http.delete(f"/v1/requests/{name}").status_code == 200
            began = time.monotonic()
            load.wait_for(5)
            verdict.recovery_s = time.monotonic() - began
        assert {answer.status for answer in load.answers} == {200, 503}
        assert full > 0
        load.judge(verdict)


@pytest.mark.fault("D10", "the engine is told to evict", injected="CONFIG SET", short=True)
def test_d10_an_engine_that_would_evict_gets_no_more_writes(verdict, tmp_path):
    with rig(tmp_path) as found, Load(found.url) as load:
        load.wait_for(10)
        client = found.engine.client()
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert found.get("/readyz").status_code == 503
        time.sleep(0.3)
        assert load.answers[-1].status == 503
        first = load.acked[0].manifest.request_id
        assert found.get(f"/v1/requests/{first}/routes").status_code == 200
        client.config_set("maxmemory-policy", "noeviction")
        began = time.monotonic()
        until(found.sidecar.is_ready)
        load.wait_for(5)
        verdict.recovery_s = time.monotonic() - began
        load.judge(verdict)


@pytest.mark.fault("D11", "an operator empties the engine", injected="FLUSHALL")
def test_d11_an_emptied_engine_is_noticed(verdict, tmp_path):
    with rig(tmp_path) as found, Load(found.url) as load:
        load.wait_for(10)
        found.engine.client().flushall()
        gone, load.acked, load.offered = load.acked, [], load.offered[-4:]
        assert found.get("/readyz").status_code == 200
        assert "engine_data_lost_total 1.0" in found.get("/metrics").text
        name = gone[0].manifest.request_id
        assert found.get(f"/v1/requests/{name}/routes").json()["code"] == "not_found"
        load.wait_for(10)
        # What was half there when it was emptied may be sealed as never seen, or again.
        load.stop()
        load.acked = load.acked[4:]
        load.judge(verdict)
        verdict.note = "no class survives it; it is counted"


@pytest.mark.fault("D12", "the primary is lost, its replica is promoted", injected="SIGKILL, proxy")
def test_d12_a_failover_loses_nothing_of_the_class_replica(verdict, tmp_path):
    primary = Engine(tmp_path / "a", "--min-replicas-to-write", 1)
    replica = Engine(tmp_path / "b")
    with primary, replica, ToxicProxy(primary.port) as balancer:
        follow(replica, primary)
        url = f"redis://127.0.0.1:{balancer.port}"
        with (
            rig(tmp_path, engine=primary, redis_url=url, durability="replica") as found,
            Load(found.url) as load,
        ):
            load.wait_for(30)
            # From here on the replica has nothing new: no record may be acknowledged.
            replica.signal(signal.SIGSTOP)
            time.sleep(1.5)
            primary.kill()
            replica.signal(signal.SIGCONT)
            client = replica.client()
            client.replicaof("NO", "ONE")
            balancer.target_port = replica.port
            balancer.drop_connections()
            promoted = time.monotonic()
            another = Engine(tmp_path / "c").start()
            try:
                follow(another, replica)
                client.config_set("min-replicas-to-write", 1)
                load.wait_for(10, timeout_s=40)
                verdict.recovery_s = load.first_success_after(promoted)
                load.judge(verdict)
            finally:
                another.kill()


@pytest.mark.fault("D13", "the primary becomes a replica of another", injected="REPLICAOF, proxy")
def test_d13_a_node_that_becomes_a_replica_is_left(verdict, tmp_path):
    first, second = Engine(tmp_path / "a"), Engine(tmp_path / "b")
    with first, second, ToxicProxy(first.port) as balancer:
        follow(second, first)
        url = f"redis://127.0.0.1:{balancer.port}"
        with rig(tmp_path, engine=first, redis_url=url) as found, Load(found.url) as load:
            load.wait_for(20)
            # Nothing is written while roles change, so nothing is lost to the change itself.
            first.client().execute_command("FAILOVER", "TO", "127.0.0.1", second.port)
            until(lambda: second.client().info("replication")["role"] == "master", 20)
            until(lambda: any(answer.status == 503 for answer in load.answers[-8:]))
            # New connections lead to the other one; the old ones stay where they are.
            balancer.target_port = second.port
            moved = time.monotonic()
            load.wait_for(10)
            verdict.recovery_s = load.first_success_after(moved)
            load.judge(verdict)


@pytest.mark.fault("D15", "a node of a cluster is lost under load", injected="SIGKILL, 3 + 5 nodes")
def test_d15_a_cluster_that_fails_over_loses_nothing_of_the_class_replica(verdict, tmp_path):
    with Cluster(tmp_path / "cluster", primaries=3, replicas=5) as cluster:
        for node in cluster.nodes:
            node.client().config_set("min-replicas-to-write", 1)
        sidecar = Sidecar(tmp_path, redis_url=cluster.url, durability="replica")
        try:
            sidecar.start()
            until(sidecar.is_ready, 20)
            with Load(sidecar.url, threads=3) as load:
                load.wait_for(30)
                cluster.nodes[1].kill()
                killed = time.monotonic()
                # Two replicas followed it: one is elected, and the other follows that one.
                heirs = [cluster.nodes[4].client(), cluster.nodes[7].client()]
                until(
                    lambda: (
                        {heir.info("replication")["role"] for heir in heirs} == {"master", "slave"}
                    ),
                    30,
                )
                elected = time.monotonic()
                # As many as cover every node, the new primary too.
                load.wait_for(30, timeout_s=60)
                verdict.recovery_s = load.first_success_after(elected)
                verdict.note = f"elected {elected - killed:.1f} s after the kill"
            load.judge(verdict)
        finally:
            sidecar.stop()


@pytest.mark.fault("D15", "slots move while trajectories are written", injected="CLUSTER SETSLOT")
def test_d15_slots_may_move_under_load(verdict, tmp_path):
    with Cluster(tmp_path / "cluster", primaries=2) as cluster:
        sidecar = Sidecar(tmp_path, redis_url=cluster.url)
        try:
            sidecar.start()
            until(sidecar.is_ready, 20)
            with Load(sidecar.url, threads=2) as load:
                load.wait_for(20)
                began = time.monotonic()
                moved = [_move(cluster, upload) for upload in load.acked[:20]]
                load.wait_for(20)
            verdict.note = f"{sum(moved)} slots with their keys moved in {_since(began):.1f} s"
            assert sum(moved) > 3
            load.judge(verdict)
        finally:
            sidecar.stop()


@pytest.mark.fault("D15", "the contract of the store on a cluster", injected="one node, all slots")
def test_d15_the_contract_holds_on_a_cluster(verdict):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ROUTEREPLAY_FAULTS")}
    environment["ROUTEREPLAY_TEST_ENGINES"] = "cluster"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract"]
    ended = subprocess.run(
        [*command, "-k", "cluster"], env=environment, capture_output=True, text=True, check=False
    )
    verdict.note = ended.stdout.strip().splitlines()[-1]
    assert ended.returncode == 0, ended.stdout[-3000:]


def _since(moment):
    return time.monotonic() - moment


def _move(cluster, upload):
    """Move the slot of an upload's trajectory from the first node to the second, if it is there."""
    nodes = [node.client() for node in cluster.nodes]
    ids = [node.execute_command("CLUSTER", "MYID").decode() for node in nodes]
    tag = f"{{default/t:{upload.manifest.trajectory_id}}}"
    slot = nodes[0].execute_command("CLUSTER", "KEYSLOT", tag)
    if slot >= 8192:
        return False
    nodes[1].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    nodes[0].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    while names := nodes[0].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
        port = cluster.nodes[1].port
        nodes[0].execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *names)
    for node in reversed(nodes):
        node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    return True


@pytest.mark.fault("D17", "200 readers take nothing of 24 MB each", injected="slow sockets")
def test_d17_slow_readers_are_cut_off_and_hold_little(verdict, tmp_path):
    import socket

    settings = {"stall_timeout_s": 3}
    with rig(tmp_path, **settings) as found:
        upload = make_upload("long", prompt_len=200_000, num_layers=60, topk=2, chunk_rows=20_000)
        for frame in [*upload.chunk_frames, upload.seal_frame]:
            assert found.post(frame).status_code == 200
        pid = found.sidecar.pid
        before = rss(pid)
        readers = []
        for _ in range(READERS):
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            raw.connect(("127.0.0.1", found.sidecar.port))
            raw.sendall(b"GET /v1/requests/long/routes HTTP/1.1\r\nHost: x\r\n\r\n")
            readers.append(raw)
        with Load(found.url, threads=1) as load:
            highest = before
            deadline = time.monotonic() + 60
            cut = f'http_closed_total{{reason="response"}} {READERS}.0'
            while cut not in found.get("/metrics").text:
                assert time.monotonic() < deadline, found.get("/metrics").text
                highest = max(highest, rss(pid))
                time.sleep(0.3)
            load.wait_for(5)
        for raw in readers:
            raw.close()
        verdict.note = f"{(highest - before) / READERS / 2**20:.1f} MiB a slow reader"
        # What all answers together may keep, and a few windows for each that is streamed.
        assert highest - before < 256 * 2**20 + READERS * 8 * 2**20
        load.judge(verdict)


def rss(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.fault("D18", "records expire while they are read", injected="a life of 1 s")
def test_d18_a_read_at_the_end_of_a_life_is_whole_or_gone(verdict, tmp_path):
    with rig(tmp_path, ttl_s=1) as found:
        seen = {}
        stop = threading.Event()
        uploads = [make_upload(f"short-{n}", seed=n, prompt_len=3000) for n in range(30)]
        whole = {}

        def read():
            with httpx.Client(base_url=found.url, timeout=10) as http:
                while not stop.is_set():
                    for upload in uploads:
                        name = upload.manifest.request_id
                        answer = http.get(f"/v1/requests/{name}/routes")
                        code = 200 if answer.status_code == 200 else answer.json()["code"]
                        seen[code] = seen.get(code, 0) + 1
                        if code == 200:
                            # Every read of a record has the bytes of the first one.
                            same = whole.setdefault(name, answer.content) == answer.content
                            verdict.wrong += not same

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for upload in uploads:
            assert found.post(upload.body).status_code == 200
            time.sleep(0.1)
        time.sleep(1.5)
        stop.set()
        for thread in threads:
            thread.join()
        verdict.note = str(seen)
        assert seen.keys() <= {200, "expired", "not_found", "pending"}
        assert seen[200] > 20
        assert seen["expired"] > 20
