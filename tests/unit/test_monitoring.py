"""Every metric that a dashboard or an alert asks for exists, and can be asked for that way."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from routereplay.sidecar.metrics import Metrics
from routereplay.wire.errors import HTTP_STATUS

ROOT = Path(__file__).parents[2] / "monitoring"
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = json.loads((ROOT / "grafana" / "dashboard.json").read_text())["panels"]
QUERIES = {rule["alert"]: rule["expr"] for rule in RULES} | {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in PANELS
    for target in panel.get("targets", ())
}


# In a process of its own: the recorder's metrics live in the process-wide registry.
_ASK = """
import json
from prometheus_client import CollectorRegistry, REGISTRY
from routereplay.patches.replay.watch import PrometheusLogger
from routereplay.patches.vllm.metrics import Metrics as Recorder
from routereplay.sidecar.metrics import Metrics as Store
Recorder()
PrometheusLogger()
collectors = [*REGISTRY._collector_to_names, *Store().registry._collector_to_names]
print(json.dumps([
    [metric._name, metric._type, list(metric._labelnames)]
    for metric in collectors if getattr(metric, "_name", "").startswith("routereplay_")
]))
"""
_SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
_SELECTOR = re.compile(r"\b(routereplay_[a-z_]+)(\{[^}]*\})?(\[)?")
# What Prometheus adds to what it scrapes.
_ADDED = {"instance", "job"}


@pytest.fixture(scope="module")
def samples():
    """Name of each sample that is there to be asked for -> its kind and its labels."""
    answer = subprocess.run(
        [sys.executable, "-c", _ASK], capture_output=True, text=True, check=True
    )
    found = {}
    for name, kind, labels in json.loads(answer.stdout):
        for suffix in _SUFFIXES.get(kind, [""]):
            found[name + suffix] = (
                kind,
                {*labels, *_ADDED, *(["le"] if suffix == "_bucket" else [])},
            )
    return found


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_asks_for_what_is_there(samples, name):
    query = QUERIES[name]
    asked = _SELECTOR.findall(query)
    assert asked or "up{" in query

    known = set(_ADDED)
    for metric, matchers, over_time in asked:
        assert metric in samples
        kind, labels = samples[metric]
        assert {label for label, _ in re.findall(r'(\w+)(=~|!=|!~|=)"', matchers)} <= labels
        # A counter means nothing but by its growth, and a gauge has none.
        assert bool(over_time) == (kind in ("counter", "histogram")) or " offset " in query
        known |= labels
    for grouped in re.findall(r"by \(([^)]*)\)", query):
        assert {label.strip() for label in grouped.split(",")} <= known


def test_every_metric_of_the_store_and_the_recorder_is_on_the_dashboard(samples):
    shown = {metric for query in QUERIES.values() for metric, _, _ in _SELECTOR.findall(query)}
    left_out = {"routereplay_journal_events_lost_total", "routereplay_recorder_bytes_total"}
    left_out |= {"routereplay_sealed_rows_total", "routereplay_ingest_frames_total"}
    left_out |= {"routereplay_recorder_held_rows", "routereplay_recorder_events_total"}
    needless = {name for name in samples if name.endswith(("_sum", "_count"))}

    assert set(samples) - shown - needless == left_out


def test_every_code_and_outcome_is_there_before_it_happens():
    text = Metrics().render().decode()

    for code in {error.code for error in HTTP_STATUS}:
        assert f'routereplay_errors_total{{code="{code}"}} 0.0' in text
        assert f'routereplay_ingest_refused_total{{code="{code}"}} 0.0' in text
    assert 'routereplay_records_total{outcome="invalid"} 0.0' in text


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_what_to_do(rule):
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "action"}


def test_panels_have_their_own_ids_and_places():
    places = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in PANELS
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]

    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len(set(places)) == len(places)
