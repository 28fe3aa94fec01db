"""The embedded engine: private, alone on its data, restarted, and gone when we are."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from support.store_processes import answers, until

from routereplay.sidecar.embedded import EmbeddedEngine
from routereplay.sidecar.errors import EngineMisconfigured, EngineStartError
from routereplay.sidecar.store.redis_checks import check_engine
from routereplay.sidecar.store.redis_engine import connect

MEMORY = 64 * 1024 * 1024


def engine(folder, durability="process"):
    return EmbeddedEngine(durability=durability, data_dir=folder, max_memory_bytes=MEMORY)


def path_of(running):
    return Path(running.url.removeprefix("unix://"))


async def within(running, use):
    """Start, use in a thread, stop."""
    await running.start()
    try:
        return await asyncio.to_thread(use, running)
    finally:
        await running.stop()


def client(running):
    return redis.Redis(unix_socket_path=str(path_of(running)), protocol=2)


def test_its_socket_is_in_a_folder_that_only_we_can_enter(tmp_path):
    def mode(running):
        return stat.S_IMODE(path_of(running).parent.stat().st_mode)

    assert asyncio.run(within(engine(tmp_path), mode)) == 0o700


def test_it_listens_on_no_port_and_never_evicts(tmp_path):
    def config(running):
        with client(running) as used:
            return {
                name: used.config_get(name)[name]
                for name in (
                    *("port", "maxmemory", "maxmemory-policy"),
                    *("appendonly", "appendfsync", "save"),
                )
            }

    assert asyncio.run(within(engine(tmp_path), config)) == {
        "port": "0",
        "maxmemory": str(MEMORY),
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "no",
        "save": "",
    }


def test_with_process_it_keeps_its_data_and_with_memory_it_leaves_nothing(tmp_path):
    def write(running):
        with client(running) as used:
            used.set("kept", "yes")
        return path_of(running).parent

    def read(running):
        with client(running) as used:
            return used.get("kept")

    asyncio.run(within(engine(tmp_path), write))
    assert asyncio.run(within(engine(tmp_path), read)) == b"yes"

    run_dir = asyncio.run(within(engine(tmp_path, "memory"), write))
    assert asyncio.run(within(engine(tmp_path, "memory"), read)) is None
    assert not run_dir.exists()


def test_a_store_that_cannot_start_says_why_in_one_line(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ROUTEREPLAY_")}
    environment |= {"ROUTEREPLAY_DATA_DIR": str(tmp_path), "ROUTEREPLAY_PORT": "0"}

    async def ended():
        first = engine(tmp_path)
        await first.start()
        try:
            command = [sys.executable, "-m", "routereplay.sidecar"]
            return await asyncio.to_thread(
                subprocess.run, command, env=environment, stderr=subprocess.PIPE, timeout=60
            )
        finally:
            await first.stop()

    second = asyncio.run(ended())
    lines = [json.loads(line) for line in second.stderr.splitlines()]
    errors = [line["message"] for line in lines if line["level"] == "ERROR"]

    assert second.returncode == 3
    assert errors[0].startswith("engine_start_failed: ")
    assert "ROUTEREPLAY_DATA_DIR" in errors[0]
    assert not any("Traceback" in line["message"] for line in lines)


def test_two_sidecars_cannot_share_one_data_folder(tmp_path):
    async def both():
        first = engine(tmp_path)
        await first.start()
        try:
            with pytest.raises(EngineStartError, match="in use by another sidecar"):
                await engine(tmp_path).start()
            assert answers(str(path_of(first)))
        finally:
            await first.stop()

    asyncio.run(both())


def test_a_data_folder_that_cannot_be_written_is_named_with_what_to_do(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(EngineStartError, match="ROUTEREPLAY_DATA_DIR"):
        asyncio.run(engine(blocked / "data").start())


def test_a_damaged_data_file_stops_the_start_with_the_engines_own_words(tmp_path):
    asyncio.run(within(engine(tmp_path), lambda _: None))
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("rubbish\n")

    with pytest.raises(EngineStartError, match="AOF manifest"):
        asyncio.run(engine(tmp_path).start())


def test_it_is_started_again_when_it_is_killed(tmp_path):
    def kill(running):
        with client(running) as used:
            used.set("kept", "yes")
        os.kill(running.pid, signal.SIGKILL)
        until(lambda: answers(str(path_of(running))), timeout_s=15)
        with client(running) as used:
            return used.get("kept")

    assert asyncio.run(within(engine(tmp_path), kill)) == b"yes"


@pytest.mark.skipif(sys.platform != "linux", reason="uses a Linux feature")
def test_it_dies_with_us_even_when_we_are_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        socket_path = parent.stdout.readline().strip()
        assert answers(socket_path)
        parent.kill()

    assert until(lambda: not answers(socket_path))


def test_an_engine_that_evicts_is_refused(tmp_path):
    def evicting(running):
        with client(running) as used:
            used.config_set("maxmemory-policy", "allkeys-lru")
        asyncio.run(_check(running.url, "process"))

    with pytest.raises(EngineMisconfigured, match="noeviction"):
        asyncio.run(within(engine(tmp_path), evicting))


def test_an_engine_without_an_append_only_file_is_refused_for_process(tmp_path):
    def check(running):
        asyncio.run(_check(running.url, "memory"))
        asyncio.run(_check(running.url, "process"))

    with pytest.raises(EngineMisconfigured, match="append-only"):
        asyncio.run(within(engine(tmp_path, "memory"), check))


def test_an_engine_that_acknowledges_before_it_writes_is_refused_for_process(tmp_path):
    def check(running):
        with client(running) as used:
            used.config_set("appendfsync", "everysec")
        asyncio.run(_check(running.url, "memory"))
        asyncio.run(_check(running.url, "process"))

    with pytest.raises(EngineMisconfigured, match="appendfsync everysec before it has written"):
        asyncio.run(within(engine(tmp_path), check))


async def _check(url, durability):
    used = connect(url, timeout_s=2, connections=1)
    try:
        await check_engine(used, durability=durability)
    finally:
        await used.aclose()
        await used.connection_pool.disconnect()


_RUN = """
import asyncio, pathlib, sys
from routereplay.sidecar.embedded import EmbeddedEngine
async def main():
    folder = pathlib.Path(sys.argv[1])
    engine = EmbeddedEngine(durability="process", data_dir=folder, max_memory_bytes=2**26)
    await engine.start()
    print(engine.url.removeprefix("unix://"), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_memory_of_deleted_values_is_used_again_and_much_of_it_is_given_back(tmp_path):
    value = os.urandom(1_000_000)

    def rss(running):
        pages = Path(f"/proc/{running.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def fill_and_delete(running):
        with client(running) as used:
            for number in range(40):
                used.set(f"small{number}", value)
            used.delete(*(f"small{number}" for number in range(40)))
            few = rss(running)
            for number in range(250):
                used.set(f"k{number}", value)
            full = rss(running)
            # What stays lies between what goes, so the heap has holes and no free end.
            used.delete(*(f"k{number}" for number in range(250) if number % 10))
            return few, full, until(lambda: rss(running) < full // 2, timeout_s=10), used.dbsize()

    running = EmbeddedEngine(durability="memory", data_dir=tmp_path, max_memory_bytes=1 << 29)
    few, full, given_back, left = asyncio.run(within(running, fill_and_delete))

    assert few > 40_000_000
    assert full > 250_000_000
    assert given_back
    assert left == 25
