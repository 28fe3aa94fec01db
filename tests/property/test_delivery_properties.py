"""Whatever the store and the disk do, every captured row is in exactly one place."""

import errno
import shutil
import tempfile
from collections import deque
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from routereplay.patches.vllm import spool as spool_module
from routereplay.patches.vllm.backlog import Backlog
from routereplay.patches.vllm.delivery import Delivery
from routereplay.patches.vllm.identity import ClientId
from routereplay.patches.vllm.ledger import Amount, Ledger
from routereplay.patches.vllm.outbox import Outbox
from routereplay.patches.vllm.record import Ending, ModelFacts, RecordInfo
from routereplay.patches.vllm.sender import Answered, Refused, Unavailable, Withheld
from routereplay.patches.vllm.settings import Settings
from routereplay.patches.vllm.spool import Spool
from routereplay.patches.vllm.spool_folder import prepare_root
from routereplay.wire.frame import decode_frame
from routereplay.wire.records import Chunk, FrameResult, Seal

MODEL = ModelFacts("tiny", num_layers=2, topk=2, num_experts=16)
OUTCOMES = st.sampled_from(["take", "take", "take", "away", "401", "413", "some", "full", "flip"])


class Courier:
    """A network that answers when it is told to, and a store that keeps what it took."""

    def __init__(self):
        self.busy = False
        self.frames = []
        self.chunks = {}
        self.sealed = {}
        self.dropped = set()
        self._outcome = None

    def start(self, frames):
        assert not self.busy
        self.busy = True
        self.frames = [decode_frame(b"".join(map(bytes, frame))) for frame in frames]

    def outcome(self):
        found, self._outcome = self._outcome, None
        self.busy = self.busy and found is None
        return found

    def answer(self, kind):
        if not self.busy or self._outcome is not None:
            return
        if kind == "away":
            self._outcome = Unavailable("away", 0.0)
        elif kind == "401":
            self._outcome = Withheld("unauthorized", "")
        elif kind == "413" and any(isinstance(frame.header, Chunk) for frame in self.frames):
            self._outcome = Refused("too_large", "")
        else:
            self._outcome = Answered(tuple(self._take(kind, i) for i in range(len(self.frames))))

    def _take(self, kind, index):
        header, payload = self.frames[index]
        if kind == "full" or (kind == "some" and index % 2):
            return FrameResult(status="refused", code="store_full")
        if kind == "flip" and index == 0:
            return FrameResult(status="refused", code="malformed_frame")
        if isinstance(header, Chunk):
            self.chunks[header.upload_id, header.seq] = bytes(payload)
        elif isinstance(header, Seal):
            refs = header.manifest.chunks
            found = [self.chunks.get((header.upload_id, seq)) for seq in range(len(refs))]
            if None in found:
                return FrameResult(status="refused", code="incomplete")
            self.sealed[header.upload_id] = b"".join(found)
            return FrameResult(status="sealed")
        else:
            self.dropped.add(header.upload_id)
        return FrameResult(status="staged")

    def close(self):
        pass


class Machine(RuleBasedStateMachine):
    """The exporter thread's work, step by step, with the time in our hands."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        root = self.folder / "spool"
        prepare_root(root)
        self.now = 1.0
        self.settings = Settings(
            "http://store",
            chunk_bytes=16,
            post_bytes=400,
            flush_bytes=16,
            queue_bytes=400,
            spool_dir=root,
            spool_bytes=6000,
            retry_ceiling_s=0.2,
        )
        self.ledger = Ledger(self.settings)
        self.outbox = Outbox(self.settings, self.ledger)
        self.spool = Spool(root, self.settings, self.ledger)
        self.courier = Courier()
        backlog = Backlog(self.spool, self.ledger, self.outbox, self.settings.post_bytes)
        self.delivery = Delivery(self.settings, self.ledger, self.outbox, self.courier, backlog)
        self.disk_fails = False
        self.write_file = spool_module.write_file
        spool_module.write_file = self.write
        self.made = 0
        self.open = {}
        self.rows = {}

    def write(self, path, buffers):
        if self.disk_fails:
            raise OSError(errno.EIO, "Input/output error")
        self.write_file(path, buffers)

    @rule(rows=st.integers(1, 9))
    def begin(self, rows):
        number, self.made = self.made, self.made + 1
        info = RecordInfo(
            *(f"engine.{number}", ClientId(f"cmpl-{number}", 0, ()), None, MODEL, "tiny"),
            *([1] * (rows + 1), 0, "engine", number, 1.0),
        )
        source = deque()
        self.outbox.open(info, source)
        self.open[number] = (info, source)
        self.rows[info.upload_id] = b""
        self.more(number, rows)

    def more(self, number, rows):
        info, source = self.open[number]
        array = np.random.default_rng(number + rows).integers(0, 16, (rows, 2, 2)).astype("u1")
        if self.ledger.admit(1, rows, array.nbytes):
            source.append(array)
            self.rows[info.upload_id] += array.tobytes()
        else:
            self.ledger.discard(rows, array.nbytes, "queue_full")
            self.outbox.lose(info, "queue_full", self.now)
            del self.open[number]

    @rule(data=st.data(), rows=st.integers(1, 5))
    def append(self, data, rows):
        if self.open:
            self.more(data.draw(st.sampled_from(sorted(self.open))), rows)

    @rule(data=st.data())
    def seal(self, data):
        if self.open:
            info, _ = self.open.pop(data.draw(st.sampled_from(sorted(self.open))))
            self.outbox.end(info, Ending([5], "stop", ()), self.now)

    @rule(kind=OUTCOMES, seconds=st.floats(0.01, 2.0))
    def turn(self, kind, seconds):
        self.now += seconds
        self.courier.answer(kind)
        self.outbox.flush(self.now)
        self.delivery.step(self.now)

    @rule(kind=st.sampled_from(["away", "401", "full"]))
    def outage(self, kind):
        for _ in range(8):
            self.turn(kind, 1.0)

    @rule()
    def disk_breaks(self):
        self.disk_fails = True

    @rule()
    def disk_works(self):
        self.disk_fails = False

    @invariant()
    def every_row_is_somewhere(self):
        assert self.ledger.stats().balance == Amount(0, 0)

    @invariant()
    def what_is_counted_is_really_there(self):
        stats = self.ledger.stats()
        unframed = sum(len(a) for _, source in self.open.values() for a in source)
        waiting = sum(parcel.rows for parcel in self.outbox.waiting if not parcel.dead)
        batch = self.delivery._batch
        assert stats.queued.rows == unframed + waiting
        assert stats.in_flight.rows == (sum(p.rows for p in batch.parcels) if batch else 0)
        assert stats.queued.nbytes + stats.in_flight.nbytes <= self.settings.queue_bytes + 400
        on_disk = sum(file.size for file in self.spool._files)
        assert on_disk == self.spool._held_bytes <= self.settings.spool_bytes

    def teardown(self):
        self.disk_fails = False
        for number in list(self.open):
            info, _ = self.open.pop(number)
            self.outbox.end(info, Ending([5], "stop", ()), self.now)
        for _ in range(600):
            if not (self.delivery.busy or self.courier.busy):
                break
            self.turn("take", 6.0)
        stats = self.ledger.stats()
        spool_module.write_file = self.write_file
        shutil.rmtree(self.folder)
        assert not self.delivery.busy, stats
        assert stats.queued == stats.in_flight == stats.spooled == Amount(0, 0)
        for upload_id, rows in self.courier.sealed.items():
            assert rows == self.rows[upload_id]
        # Each record is in the store, or the store knows why it is not.
        told = set(self.courier.sealed) | self.courier.dropped
        refused = {f"engine.{n}" for n in range(self.made)} - told
        assert not refused, (refused, stats)


Machine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestDelivery = Machine.TestCase
