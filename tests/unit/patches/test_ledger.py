import random
import threading

import pytest

from routereplay.patches.vllm.ledger import Amount, Ledger
from routereplay.patches.vllm.settings import Settings


@pytest.fixture
def ledger():
    return Ledger(Settings("http://store", queue_bytes=1000, queue_items=50))


def test_rows_are_in_exactly_one_place_after_every_move(ledger):
    assert ledger.admit(1, 10, 100)
    ledger.depart(4, 40)
    ledger.acknowledge(3, 30)
    ledger.drop_in_flight(1, 10, "rejected:conflict")
    ledger.drop_queued(2, 20, "queue_full")
    ledger.discard(7, 70, "queue_full")
    stats = ledger.stats()

    assert stats.captured == Amount(17, 170)
    assert stats.acked == Amount(3, 30)
    assert stats.queued == Amount(4, 40)
    assert stats.in_flight == Amount(0, 0)
    assert stats.dropped == {"rejected:conflict": Amount(1, 10), "queue_full": Amount(9, 90)}
    assert stats.balance == Amount(0, 0)


def test_the_bound_counts_what_waits_and_what_is_being_sent(ledger):
    assert ledger.admit(1, 1, 600)
    ledger.depart(1, 600)

    assert not ledger.admit(1, 1, 401)
    assert ledger.admit(1, 1, 400)
    assert ledger.stats().captured.nbytes == 1000


def test_arrays_are_bounded_until_the_thread_collects_them(ledger):
    assert ledger.admit(50, 50, 50)
    assert not ledger.admit(1, 1, 1)
    ledger.collected(50)

    assert ledger.admit(1, 1, 1)


def test_after_the_end_nothing_moves_any_more(ledger):
    ledger.admit(1, 10, 100)
    ledger.depart(5, 50)

    assert ledger.drop_everything("shutdown") == Amount(10, 100)
    ledger.acknowledge(5, 50)
    assert not ledger.admit(1, 1, 1)
    assert ledger.stats().balance == Amount(0, 0)
    assert ledger.stats().acked == Amount(0, 0)


def test_the_identity_holds_at_every_instant_under_threads():
    ledger = Ledger(Settings("http://store", queue_bytes=10**9, queue_items=10**9))
    done = threading.Event()
    broken = []

    def watch():
        while not done.is_set():
            balance = ledger.stats().balance
            if balance != Amount(0, 0):
                broken.append(balance)

    def work(seed):
        chance = random.Random(seed)
        for _ in range(3000):
            rows = chance.randrange(1, 9)
            if not ledger.admit(1, rows, rows * 8):
                continue
            if chance.random() < 0.2:
                ledger.drop_queued(rows, rows * 8, "queue_full")
                continue
            ledger.depart(rows, rows * 8)
            if chance.random() < 0.2:
                ledger.drop_in_flight(rows, rows * 8, "store_unreachable")
            else:
                ledger.acknowledge(rows, rows * 8)

    watcher = threading.Thread(target=watch)
    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    watcher.start()
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    watcher.join()

    assert broken == []
    assert ledger.stats().queued == Amount(0, 0)
    assert ledger.stats().acked.rows > 0
