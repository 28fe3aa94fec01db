"""D: the engine is killed, torn, damaged on disk, full or slow; what was acknowledged stays."""

import subprocess
import time

import pytest
from faults import needs
from support.engines import Engine
from support.frames import make_upload
from support.load import Load
from support.rig import rig
from support.store_processes import find_redis_server, until


def restart(found, verdict):
    """Start the engine again and wait until the store is ready."""
    began = time.monotonic()
    found.engine.start()
    until(found.sidecar.is_ready, 30)
    verdict.recovery_s = time.monotonic() - began


def append_only(engine):
    """The append-only files of an engine that is down, the newest last."""
    return sorted((engine.folder / "appendonlydir").glob("*.incr.aof"))


@pytest.mark.fault("D1", "the engine is killed under load", injected="SIGKILL", short=True)
def test_d01_a_killed_engine_loses_nothing(verdict, tmp_path):
    with rig(tmp_path) as found, Load(found.url) as load:
        load.wait_for(20)
        killed = time.monotonic()
        found.engine.kill()
        time.sleep(1)
        restart(found, verdict)
        load.wait_for(20)
        load.stop()
        down = {answer.status for answer in load.between(killed + 0.2, killed + 0.8)}
        assert down == {503}
        load.judge(verdict)


@pytest.mark.fault("D2", "the end of the append-only file is torn", injected="kill, -1000 bytes")
def test_d02_a_torn_file_shows_nothing_partial(verdict, tmp_path):
    with rig(tmp_path) as found:
        with Load(found.url) as load:
            load.wait_for(30)
        found.engine.kill()
        with append_only(found.engine)[-1].open("r+b") as file:
            file.truncate(file.seek(0, 2) - 1000)
        restart(found, verdict)
        load.judge(verdict)
        verdict.note = f"{verdict.lost} at the torn end are gone, which `process` does not promise"
        assert verdict.lost <= 2
        verdict.lost = 0


@pytest.mark.fault("D3", "the append-only file is damaged in its middle", injected="overwrite")
def test_d03_an_engine_that_refuses_its_file_is_a_503_until_it_is_mended(verdict, tmp_path):
    with rig(tmp_path) as found:
        with Load(found.url) as load:
            load.wait_for(30)
        found.engine.kill()
        path = append_only(found.engine)[-1]
        good = path.read_bytes()
        command = good.index(b"\r\n*", 5000) + 2
        path.write_bytes(good[:command] + b"!" + good[command + 1 :])
        found.engine.start(wait=False)
        assert found.engine.process.wait(20) != 0
        assert "valkey-check-aof" in found.engine.log()
        assert found.get("/readyz").status_code == 503
        assert found.get("/livez").status_code == 200
        path.write_bytes(good)
        restart(found, verdict)
        load.judge(verdict)


@pytest.mark.fault("D4", "bits rot in a stored value", injected="a flipped bit in the file")
def test_d04_rotten_bits_are_corrupt_and_never_served(verdict, tmp_path):
    with rig(tmp_path) as found:
        with Load(found.url) as load:
            load.wait_for(20)
        rotten = make_upload("rotten", seed=7, num_layers=8, topk=4, prompt_len=300)
        assert found.post(rotten.body).status_code == 200
        found.engine.kill()
        path = append_only(found.engine)[-1]
        text = bytearray(path.read_bytes())
        # Of the last value that was written: the middle of a run that is no command.
        at = text.rindex(rotten.token_ids.tobytes()[40:80])
        text[at + 5] ^= 4
        path.write_bytes(text)
        restart(found, verdict)
        answer = found.get("/v1/requests/rotten/routes")
        assert (answer.status_code, answer.json()["code"]) == (502, "corrupt")
        load.judge(verdict)


def small_disk(folder, megabytes):
    needs.root()
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    subprocess.run(command, check=True)


def fill(path):
    """Take the whole disk, the last page too."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(bytes(4096))


@pytest.mark.fault("D5", "the disk is full", injected="tmpfs of 8 MB, appendfsync no")
def test_d05_a_full_disk_stops_writes_and_frees_again(verdict, tmp_path):
    folder = tmp_path / "engine"
    small_disk(folder, 8)
    try:
        with rig(tmp_path) as found, Load(found.url) as load:
            load.wait_for(20)
            filler = folder / "filler"
            fill(filler)
            until(lambda: found.get("/readyz").status_code == 503, 20)
            refused = found.post(make_upload("when-full", seed=1).body)
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            first = load.acked[0].manifest.request_id
            assert found.get(f"/v1/requests/{first}/routes").status_code == 200
            began = time.monotonic()
            filler.unlink()
            until(found.sidecar.is_ready, 20)
            load.wait_for(10)
            verdict.recovery_s = time.monotonic() - began
            load.stop()
            found.engine.kill()
            found.engine.start()
            until(found.sidecar.is_ready, 30)
            load.judge(verdict)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.fault("D6", "the disk is full", injected="tmpfs of 8 MB, appendfsync always")
def test_d06_an_engine_that_ends_on_a_full_disk_loses_nothing(verdict, tmp_path):
    folder = tmp_path / "engine"
    small_disk(folder, 8)
    try:
        options = ("--appendfsync", "always")
        with rig(tmp_path, *options, durability="disk") as found, Load(found.url) as load:
            load.wait_for(10)
            filler = folder / "filler"
            fill(filler)
            assert found.engine.process.wait(20) != 0
            until(lambda: found.get("/readyz").status_code == 503)
            filler.unlink()
            restart(found, verdict)
            load.wait_for(10)
            load.judge(verdict)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.fault("D7", "every fsync takes 300 ms", injected="strace: delay of fdatasync")
def test_d07_a_slow_disk_makes_writes_slow_and_nothing_else(verdict, tmp_path):
    needs.program("strace")
    wrap = ("strace", "-f", "-o", "/dev/null", "-e", "trace=fdatasync")
    wrap += ("-e", "inject=fdatasync:delay_enter=300000")
    engine = Engine(tmp_path / "engine", "--appendfsync", "always", wrap=wrap)
    with rig(tmp_path, engine=engine, durability="disk", engine_timeout_s=5) as found:
        with Load(found.url, threads=1) as load:
            load.wait_for(3, timeout_s=60)
        seconds = sorted(answer.seconds for answer in load.answers if answer.status == 200)
        verdict.note = f"a record took {seconds[len(seconds) // 2]:.1f} s"
        assert seconds[0] > 0.3
        assert [answer.status for answer in load.answers if answer.status not in (200, 0)] == []
        load.judge(verdict)
        # strace passes the end on to the engine, which else would outlive it.
        found.engine.client().shutdown(nosave=True)


@pytest.mark.fault("D14", "scripts are forgotten", injected="SCRIPT FLUSH", short=True)
def test_d14_forgotten_scripts_are_loaded_again(verdict, tmp_path):
    with rig(tmp_path) as found, Load(found.url) as load:
        client = found.engine.client()
        for _ in range(20):
            client.script_flush()
            load.wait_for(2)
        load.stop()
        assert {answer.status for answer in load.answers} == {200}
        load.judge(verdict)


@pytest.mark.fault("D16", "the engine loads its data for seconds", injected="key-load-delay")
def test_d16_a_loading_engine_is_a_503_until_it_has_loaded(verdict, tmp_path):
    with rig(tmp_path) as found:
        with Load(found.url) as load:
            load.wait_for(150)
        found.engine.kill()
        slow = Engine(
            found.engine.folder,
            *("--key-load-delay", 3000, "--loading-process-events-interval-bytes", 1024),
            port=found.engine.port,
        )
        found.engine.process = slow.start(wait=False).process
        began = time.monotonic()
        loading = []
        while not found.sidecar.is_ready():
            asked = time.monotonic()
            answer = found.post(make_upload("while-loading", seed=1).body)
            loading.append((answer.status_code, time.monotonic() - asked))
            assert time.monotonic() - began < 60
        verdict.recovery_s = time.monotonic() - began
        assert {status for status, _ in loading} <= {503, 200}
        assert loading[0][0] == 503
        assert max(seconds for _, seconds in loading) < 2
        load.judge(verdict)


@pytest.mark.fault("D19", "an old engine is killed under load", injected="Redis 7.0.15, SIGKILL")
def test_d19_an_old_redis_keeps_what_it_acknowledged(verdict, tmp_path):
    if find_redis_server() is None:
        pytest.skip("needs redis-server: apt-get install redis-server")
    engine = Engine(tmp_path / "engine", debian=True)
    with rig(tmp_path, engine=engine) as found, Load(found.url) as load:
        load.wait_for(20)
        found.engine.kill()
        time.sleep(0.5)
        restart(found, verdict)
        load.wait_for(10)
        load.judge(verdict)
