"""What is told of the latest events, from events that are made up one by one."""

import pytest

from routereplay.sidecar import overview
from routereplay.sidecar.journal import Bucket, Event


def event(request_id, at=1000.0, kind="sealed", **fields):
    return Event(kind=kind, at=at, request_id=request_id, **fields)


def codes(events=(), used=0, limit=100, now=1000.0, **fields):
    engine = {"used_memory": used, "maxmemory": limit}
    found = overview.alarms(list(events), engine, now, **{"high_water": 0.9, **fields})
    return [(alarm["severity"], alarm["code"]) for alarm in found]


@pytest.mark.parametrize(
    ("used", "limit", "expected"),
    [
        (76, 100, []),
        (77, 100, [("warning", "engine_nearly_full")]),
        (90, 100, [("critical", "engine_full")]),
        (90, 0, []),
    ],
)
def test_memory_is_an_alarm_before_and_when_routes_are_refused(used, limit, expected):
    assert codes(used=used, limit=limit) == expected


def test_the_worst_alarm_comes_first_and_old_news_is_none():
    events = [
        event("old", at=10.0, kind="dropped", reason="queue_full"),
        event("gone", kind="dropped", reason="aborted"),
        event("lost", kind="dropped", reason="queue_full"),
        event("part", complete=False),
        event("bad", invalid=("zero_rows",)),
    ]

    assert codes(events, data_lost=1) == [
        ("critical", "engine_lost_data"),
        ("critical", "routes_invalid"),
        ("warning", "records_dropped"),
        ("warning", "records_incomplete"),
        ("info", "records_dropped"),
    ]


def test_a_choice_is_told_by_its_last_event_only():
    events = [
        event("a", at=1.0, kind="dropped", reason="store_unreachable"),
        event("b", at=2.0),
        event("a", at=3.0, rows=5),
        event("b", at=4.0, kind="deleted"),
    ]

    (only,) = overview.recent_requests(events, ttl_s=10, limit=9)

    assert (only["request_id"], only["state"], only["rows"]) == ("a", "sealed", 5)
    assert only["expires_at"] == 13.0


def test_a_trajectory_expires_with_its_oldest_turn_and_requests_of_their_own_stay_apart():
    events = [
        event("t0", at=1.0, trajectory_id="t", policy_versions=("8",)),
        event("alone", at=2.0),
        event("t1", at=3.0, trajectory_id="t", policy_versions=("7",)),
    ]

    talk, alone = overview.recent_trajectories(events, ttl_s=10, limit=9)

    assert (talk["turns"], talk["expires_at"], talk["last_at"]) == (2, 11.0, 3.0)
    assert talk["policy_versions"] == ["7", "8"]
    assert (alone["trajectory_id"], alone["request_id"]) == (None, "alone")


def test_what_is_stored_is_summed_and_has_an_end():
    buckets = [Bucket(0.0, 10.0, 1, 2, 3), Bucket(10.0, 20.0, 4, 5, 6)]

    told = overview.stored(buckets, ttl_s=100, now=15.0)

    assert (told["records"], told["rows"], told["bytes"]) == (5, 7, 9)
    assert [slice_["in_s"] for slice_ in told["expiring"]] == [95.0, 105.0]


def test_a_recorder_is_told_by_what_it_brought():
    events = [
        event("a", engine_id="one", rows=5, nbytes=50),
        event("b", engine_id="one", kind="dropped", reason="shutdown", rows=2),
        event("c", engine_id="two", at=2000.0, invalid=("stale_rows",)),
        event("d"),
    ]

    two, one = overview.recorders(events)

    assert (one["engine_id"], one["sealed"], one["rows_lost"]) == ("one", 1, 2)
    assert one["dropped"] == {"shutdown": 1}
    assert two["invalid"] == {"stale_rows": 1}
