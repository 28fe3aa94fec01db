import pytest

from routereplay.patches.vllm.ledger import Amount, Stats

prometheus_client = pytest.importorskip("prometheus_client")

PROBE = """
import os, sys
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from routereplay.patches.vllm.ledger import Amount, Stats
from routereplay.patches.vllm.metrics import Metrics
z = Amount()
Metrics().publish(Stats(Amount(3, 24), Amount(2, 16), Amount(1, 8), z, z, {}))
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def reading(captured, acked, dropped):
    zero = Amount()
    return Stats(captured, acked, zero, zero, zero, dropped, records={"sealed": acked.rows})


def test_counters_follow_the_ledger_and_never_count_twice(monkeypatch):
    from routereplay.patches.vllm import metrics

    registry = prometheus_client.CollectorRegistry()
    for kind in ("Counter", "Gauge"):
        real = getattr(prometheus_client, kind)
        made = lambda *args, real=real, **kwargs: real(*args, registry=registry, **kwargs)  # noqa: E731
        monkeypatch.setattr(metrics, kind, made)
    published = metrics.Metrics()
    stats = reading(Amount(5, 40), Amount(3, 24), {"queue_full": Amount(2, 16)})
    published.publish(stats)
    published.publish(stats)
    name = "routereplay_recorder_rows_total"

    assert registry.get_sample_value(name, {"state": "captured"}) == 5
    assert registry.get_sample_value(name, {"state": "acked"}) == 3
    assert registry.get_sample_value(name, {"state": "dropped:queue_full"}) == 2
    published.publish(reading(Amount(6, 48), Amount(6, 48), {}))
    assert registry.get_sample_value(name, {"state": "acked"}) == 6


def test_several_api_servers_share_their_figures(tmp_path):
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert 'routereplay_recorder_rows_total{state="captured"} 3.0' in done.stdout
    assert 'routereplay_recorder_held_bytes{state="queued"} 8.0' in done.stdout
