"""The spool on a real disk: what goes there, comes back, is adopted and is put aside."""

import json
import os
import socket
import stat
import time
from collections import deque
from contextlib import closing

import pytest

from routereplay.patches.vllm.exporter import Exporter
from routereplay.patches.vllm.ledger import Amount
from routereplay.patches.vllm.settings import Settings
from routereplay.patches.vllm.spool_folder import Folder, prepare_root
from routereplay.wire.records import Chunk, Drop, Seal

FAST = {"flush_age_s": 0.05, "retry_ceiling_s": 0.05, "flush_timeout_s": 2.0}


@pytest.fixture
def port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def make_exporter(root, port):
    made = []

    def make(**settings):
        url = settings.pop("url", f"http://127.0.0.1:{port}")
        made.append(Exporter(Settings(url, **{**FAST, "spool_dir": root, **settings})))
        return made[-1]

    yield make
    for exporter in made:
        exporter.close(1.0)
        assert exporter.stats().balance == Amount(0, 0)


def record(exporter, info, arrays, ending=None):
    source = deque()
    exporter.open(info, source)
    for array in arrays:
        assert exporter.admit(1, len(array), array.nbytes)
        source.append(array)
    if ending is not None:
        exporter.seal(info, ending)


def eventually(look, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def files(root):
    return sorted(root.glob("*-*/*.rrs"))


def spooled(exporter, rows):
    return eventually(lambda: exporter.stats().spooled.rows == rows)


def left_behind(make_exporter, make_info, make_rows, ending, count=3, unsealed=0):
    """What a process leaves that ends while its store is away."""
    exporter = make_exporter()
    for number in range(count):
        record(exporter, make_info(number), [make_rows(5, number)], ending)
        spooled(exporter, 5 * (number + 1))
    for number in range(count, count + unsealed):
        record(exporter, make_info(number), [make_rows(2, number)])
        spooled(exporter, 5 * count + 2 * (number - count + 1))
    return exporter


def kill(exporter):
    """End an exporter as a killed process would: its locks are free and nothing else is done."""
    exporter._closing = True
    exporter._thread.join(0.01)
    exporter._finish = None
    exporter._spool.abandon()


@pytest.mark.parametrize("codec", ["raw", "bitpack"])
def test_rows_go_to_disk_while_the_store_is_away_and_arrive_when_it_is_back(
    make_exporter, make_store, make_info, make_rows, ending, root, port, codec
):
    exporter = make_exporter(codec=codec)
    record(exporter, make_info(0), [make_rows(5)], ending)
    record(exporter, make_info(1), [make_rows(2)])
    spooled(exporter, 7)
    assert exporter.stats().queued == exporter.stats().in_flight == Amount(0, 0)
    assert exporter.stats().store_away
    assert exporter.stats().oldest_unsent_s > 0
    store = make_store(port)
    store.wait_seals(1)
    eventually(lambda: exporter.stats().acked.rows == 7)
    exporter.seal(make_info(1), ending)

    eventually(lambda: not files(root))  # It is removed just after it is counted.
    assert {h.request_id for h in store.headers_of(Chunk)} == {"cmpl-0", "cmpl-1"}
    # What waits, goes to disk and arrives is counted as it was captured, however it is written.
    assert exporter.stats().acked.nbytes == make_rows(7).nbytes
    assert {h.dtype == "bitpack" for h in store.headers_of(Chunk)} == {codec == "bitpack"}


def test_others_can_read_nothing_of_it(make_exporter, make_info, make_rows, ending, root):
    exporter = make_exporter()
    record(exporter, make_info(0), [make_rows(5)], ending)
    spooled(exporter, 5)
    modes = {stat.S_IMODE(path.lstat().st_mode) for path in [root, *root.glob("*")]}

    assert modes == {0o700}
    assert {stat.S_IMODE(p.lstat().st_mode) for p in root.glob("*/*")} == {0o600}


def test_the_end_of_the_process_leaves_the_rest_on_disk_in_time(
    make_exporter, make_store, make_info, make_rows, ending, root, port
):
    exporter = make_exporter()
    record(exporter, make_info(0), [make_rows(5)], ending)
    record(exporter, make_info(1), [make_rows(2)])
    began = time.monotonic()
    exporter.close()
    assert time.monotonic() - began < FAST["flush_timeout_s"] + 1
    assert exporter.stats().spooled == Amount(5, 40)
    assert exporter.stats().dropped == {"shutdown": Amount(2, 16)}
    heir = make_exporter()
    store = make_store(port)
    store.wait_seals(1)
    store.wait_for(lambda: any(isinstance(f.header, Drop) for f in store.frames))

    assert [drop.reason for drop in store.headers_of(Drop)] == ["shutdown"]
    eventually(lambda: heir.stats().acked == Amount(5, 40))
    assert heir.stats().captured == Amount(5, 40)
    assert heir.stats().events["spool_adopted"] == 5


def test_the_end_of_the_process_sends_what_is_on_disk_if_the_store_is_back(
    make_exporter, make_store, make_info, make_rows, ending, root, port
):
    exporter = make_exporter(retry_ceiling_s=30)
    for number in range(4):
        record(exporter, make_info(number), [make_rows(5)], ending)
    spooled(exporter, 20)
    store = make_store(port)
    exporter.close(5.0)

    assert len(store.headers_of(Seal)) == 4
    assert exporter.stats().acked.rows == 20
    assert not list(root.glob("*"))


def test_a_store_that_hangs_does_not_keep_the_end_from_the_disk(
    make_exporter, make_info, make_rows, ending
):
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        exporter = make_exporter(url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        record(exporter, make_info(0), [make_rows(5)], ending)
        eventually(lambda: exporter.stats().in_flight.rows)
        began = time.monotonic()
        exporter.close()

        assert time.monotonic() - began < FAST["flush_timeout_s"] + 1
        assert exporter.stats().spooled == Amount(5, 40)


def test_a_dead_processs_records_without_a_seal_are_reported_as_lost(
    make_exporter, make_store, make_info, make_rows, ending, port
):
    kill(left_behind(make_exporter, make_info, make_rows, ending, count=2, unsealed=1))
    make_exporter()
    store = make_store(port)
    store.wait_for(lambda: any(isinstance(f.header, Drop) for f in store.frames))

    assert len(store.headers_of(Seal)) == 2
    (drop,) = store.headers_of(Drop)
    assert (drop.request_id, drop.reason, drop.rows) == ("cmpl-2", "process_died", 2)


def test_a_live_processs_folder_is_left_alone(make_exporter, make_info, make_rows, ending, root):
    left_behind(make_exporter, make_info, make_rows, ending, count=1)
    other = make_exporter()
    other._spool.adopt()

    assert other.stats().spooled.rows == 0
    assert len(files(root)) == 1


def test_rows_for_another_store_are_left_alone(
    make_exporter, make_store, make_info, make_rows, ending, root
):
    kill(left_behind(make_exporter, make_info, make_rows, ending, count=1))
    store = make_store()
    other = make_exporter(url=store.url)
    record(other, make_info(7), [make_rows(5)], ending)
    store.wait_seals(1)

    assert [s.manifest.request_id for s in store.headers_of(Seal)] == ["cmpl-7"]
    assert len(files(root)) == 1


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "foreign", "link", "half"])
def test_a_damaged_file_is_put_aside_and_the_others_are_sent(
    make_exporter, make_store, make_info, make_rows, ending, root, port, tmp_path, damage
):
    kill(left_behind(make_exporter, make_info, make_rows, ending))
    bad = files(root)[1]
    content = bad.read_bytes()
    secret = tmp_path / "secret"
    secret.write_bytes(content)
    if damage == "bit":
        position = content.index(make_rows(5, 1).tobytes())
        bad.write_bytes(content[:position] + b"\x0f" + content[position + 1 :])
    elif damage == "cut":
        bad.write_bytes(content[:-100])
    elif damage == "empty":
        bad.write_bytes(b"")
    elif damage == "foreign":
        bad.rename(bad.with_name("notes.txt"))
    elif damage == "link":
        bad.unlink()
        bad.symlink_to(secret)
    else:
        bad.rename(bad.with_suffix(".tmp"))
    heir = make_exporter()
    store = make_store(port)
    store.wait_seals(2)
    eventually(lambda: heir.stats().acked.rows >= 10 and not files(root))
    put_aside = [path.name for path in (root / "bad").glob("*")]

    assert {s.manifest.request_id for s in store.headers_of(Seal)} >= {"cmpl-0", "cmpl-2"}
    assert secret.read_bytes() == content
    assert len(put_aside) == (damage != "half")
    if damage == "bit":
        assert heir.stats().dropped == {"spool_damaged": Amount(5, 40)}
        eventually(lambda: [d.reason for d in store.headers_of(Drop)] == ["spool_damaged"])


def test_what_has_no_room_on_disk_waits_in_memory_and_then_is_lost_aloud(
    make_exporter, make_store, make_info, make_rows, ending, port
):
    exporter = make_exporter(spool_bytes=4096, queue_bytes=100)
    record(exporter, make_info(0), [make_rows(5)], ending)
    spooled(exporter, 5)
    number = 0
    while exporter.admit(1, 5, 40):
        number += 1
        source = deque([make_rows(5)])
        exporter.open(make_info(number), source)
        exporter.seal(make_info(number), ending)
        time.sleep(0.3)

    assert exporter.full_reason == "spool_full"
    assert 0 < exporter.stats().spooled.nbytes < 400
    store = make_store(port)
    store.wait_seals(number + 1)
    eventually(lambda: exporter.full_reason == "queue_full")


def test_a_seal_never_overtakes_its_chunks_that_are_on_disk(
    make_exporter, make_store, make_info, make_rows, ending, port
):
    exporter = make_exporter()
    record(exporter, make_info(0), [make_rows(5)])
    spooled(exporter, 5)
    store = make_store(port)
    exporter.seal(make_info(0), ending)
    store.wait_seals(1)

    assert [type(frame.header) for frame in store.frames] == [Chunk, Seal]


@pytest.mark.parametrize("what", ["link", "file", "open to all"])
def test_a_root_that_others_could_use_is_refused_at_start_up(tmp_path, what):
    root = tmp_path / "root"
    if what == "link":
        (tmp_path / "real").mkdir(mode=0o700)
        root.symlink_to(tmp_path / "real")
    elif what == "file":
        root.write_text("")
    else:
        root.mkdir(mode=0o755)

    with pytest.raises(ValueError, match="ROUTEREPLAY_SPOOL_DIR"):
        Exporter(Settings("http://store", spool_dir=root))


def test_the_lock_of_a_folder_survives_a_fork_in_the_parent_only(tmp_path):
    prepare_root(tmp_path / "root")
    folder = Folder.create(tmp_path / "root", "mark")
    child = os.fork()
    if child == 0:
        folder.leave()
        os._exit(0)
    os.waitpid(child, 0)

    assert Folder.claim(folder.path) is None
    folder.leave()
    assert Folder.claim(folder.path) is not None


def test_the_command_shows_checks_and_pushes_what_is_there(
    make_exporter, make_store, make_info, make_rows, ending, root, port
):
    from typer.testing import CliRunner

    from routereplay.cli.app import app

    def run(*arguments):
        return CliRunner().invoke(app, ["spool", *arguments, "--dir", str(root)])

    kill(left_behind(make_exporter, make_info, make_rows, ending, count=2))
    assert "of a dead process: 2 files, 10 rows" in run("ls").output
    assert run("verify").output == "0 damaged files\n"
    (listed,) = json.loads(run("ls", "--json").stdout)["folders"]
    assert (listed["files"], listed["rows"], listed["in_use"]) == (2, 10, False)
    assert json.loads(run("verify", "--json").stdout) == {"files": 2, "damaged": []}
    store = make_store(port)
    pushed = run("push", "--store", f"http://127.0.0.1:{port}", "--timeout", "20")

    assert pushed.output == "10 rows are in the store, 0 still wait, 0 are lost\n"
    assert pushed.exit_code == 0
    assert len(store.headers_of(Seal)) == 2
    assert run("ls").output == ""
    again = run("push", "--store", f"http://127.0.0.1:{port}", "--json")
    assert json.loads(again.stdout) == {"stored_rows": 0, "waiting_rows": 0, "lost_rows": 0}
