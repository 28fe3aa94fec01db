"""The real exporter and the real store over deltas: what the store refuses is sent as an orphan."""

import itertools
from collections import deque

import numpy as np
import pytest
from support.route_store import decode_routes
from support.store_processes import until

from routereplay.client import RouteStoreClient
from routereplay.client.stitching import stitch
from routereplay.patches.vllm.exporter import Exporter
from routereplay.patches.vllm.identity import ClientId
from routereplay.patches.vllm.prefix import Lineage, ParentId
from routereplay.patches.vllm.record import Ending, ModelFacts, RecordInfo
from routereplay.patches.vllm.settings import Settings

MODEL = ModelFacts("tiny", num_layers=4, topk=2, num_experts=16)
WIDE = ModelFacts("wide", num_layers=4, topk=8, num_experts=16)
"""Of which packed rows are half as long, and sorted ones three eighths."""
LINEAGE = Lineage("engine", "tiny", "", "")
_NUMBERS = itertools.count()


@pytest.fixture
def exporter(store):
    # Nothing is framed before it must be.
    made = Exporter(Settings(store.sidecar.url, flush_age_s=60.0))
    yield made
    made.close(5.0)


@pytest.fixture
def elsewhere(store):
    made = Exporter(Settings(store.sidecar.url, flush_age_s=60.0))
    yield made
    made.close(5.0)


class Turn:
    """A record that the exporter brings to the store."""

    def __init__(self, exporter, request_id, prompt, completion, *, model=MODEL, **fields):
        self.exporter = exporter
        self.completion = list(completion)
        start = fields.get("start", 0)
        trajectory = request_id.split("-")[0]
        number = next(_NUMBERS)
        self.info = RecordInfo(
            upload_id=f"engine.{number}",
            client=ClientId(request_id, fields.get("choice", 0), ()),
            trajectory_id=trajectory,
            model=model,
            model_name="tiny",
            prompt_token_ids=list(prompt),
            row_start=start,
            engine_id="engine",
            ordinal=number,
            started_at=1000.0 + number,
            parent=fields.get("parent"),
        )
        rows = len(self.info.prompt_token_ids) + len(self.completion) - 1 - start
        shape = (rows, model.num_layers, model.topk)
        self.rows = np.random.default_rng(number).integers(0, 16, shape, dtype=np.uint8)
        self.source = deque()
        exporter.open(self.info, self.source)

    @property
    def id(self):
        return ParentId(self.info.client.request_id, self.info.client.choice, self.info.upload_id)

    def capture(self):
        assert self.exporter.admit(1, len(self.rows), self.rows.nbytes)
        self.source.append(self.rows)
        return self

    def end(self):
        info = self.info
        self.exporter.seal(info, Ending(self.completion, "stop", ()))
        self.exporter.known.note(
            info.trajectory_id, self.id, LINEAGE, info.prompt_token_ids, self.completion
        )
        return self


def sealed(exporter, count):
    until(lambda: exporter.stats().records.get("sealed", 0) >= count, 10)


@pytest.fixture(params=["bitpack", "sorted"])
def packing(store, request):
    made = Exporter(Settings(store.sidecar.url, flush_age_s=60.0, codec=request.param))
    yield made
    made.close(5.0)


def known(exporter, trajectory, prompt):
    return exporter.known.find(trajectory, LINEAGE, prompt)


def test_a_delta_on_a_deleted_turn_is_kept_as_an_orphan_and_the_next_has_all_rows(store, exporter):
    first = Turn(exporter, "bereft-0", range(10), [1, 2, 3]).capture().end()
    sealed(exporter, 1)
    store.http.delete("/v1/requests/bereft-0")
    prompt = [*range(10), 1, 2, 3, 4]
    assert known(exporter, "bereft", prompt) == (first.id, 12)
    second = Turn(exporter, "bereft-1", prompt, [5, 6], parent=first.id, start=12).capture().end()
    sealed(exporter, 2)

    assert exporter.stats().events["orphaned"] == 1
    assert known(exporter, "bereft", [*prompt, 5, 6]) is None
    answer = store.get("/v1/requests/bereft-1/routes")
    assert (answer.status_code, answer.json()["code"]) == (404, "deleted")
    _, (rows,), _ = decode_routes(store.get("/v1/requests/bereft-1/routes", tokens="12:"))
    assert np.array_equal(rows, second.rows)
    third = Turn(exporter, "bereft-2", [*prompt, 5, 6, 7], [8]).capture().end()
    sealed(exporter, 3)
    _, (rows,), _ = decode_routes(store.get("/v1/requests/bereft-2/routes"))
    assert np.array_equal(rows, third.rows)
    assert exporter.stats().dropped == {}


def test_a_hash_that_lies_is_found_out_by_the_store(store, exporter):
    first = Turn(exporter, "liar-0", range(10), [1, 2, 3]).capture().end()
    prompt = [99, *range(1, 10), 1, 2, 3, 4]
    Turn(exporter, "liar-1", prompt, [5, 6], parent=first.id, start=12).capture().end()
    sealed(exporter, 2)

    assert exporter.stats().events["orphaned"] == 1
    answer = store.get("/v1/requests/liar-1/routes")
    assert (answer.status_code, answer.json()["code"]) == (409, "parent_mismatch")


def test_a_choice_that_ends_before_the_first_one_is_no_orphan(store, exporter):
    prompt = range(20)
    first = Turn(exporter, "siblings-0", prompt, [1, 2, 3]).capture()
    second = Turn(exporter, "siblings-0", prompt, [4], choice=1, parent=first.id, start=19)
    second.capture().end()
    sealed(exporter, 1)

    assert "orphaned" not in exporter.stats().events
    url = "/v1/requests/siblings-0/routes"
    assert store.get(url, choice=1).json()["code"] == "pending"
    first.end()
    _, (rows,), _ = decode_routes(store.get(url, choice=1, wait=10))
    assert np.array_equal(rows, np.concatenate([first.rows[:19], second.rows]))


def test_a_lost_turn_is_forgotten_at_once(store, exporter):
    first = Turn(exporter, "given-0", range(10), [1, 2, 3]).capture().end()
    sealed(exporter, 1)
    prompt = [*range(10), 1, 2, 3, 4]
    second = Turn(exporter, "given-1", prompt, [5, 6], parent=first.id, start=12).capture()
    exporter.drop(second.info, "queue_full")
    until(lambda: known(exporter, "given", [*prompt, 5, 6]) is None, 5)

    described = store.get("/v1/trajectories/given").json()
    assert described["coverage"]["complete"] is False


def test_a_conversation_that_moves_to_another_server_is_recorded_whole_there(
    store, exporter, elsewhere
):
    first = Turn(exporter, "moved-0", range(10), [1, 2, 3]).capture().end()
    sealed(exporter, 1)
    prompt = [*range(10), 1, 2, 3, 4]
    assert known(exporter, "moved", prompt) == (first.id, 12)
    assert known(elsewhere, "moved", prompt) is None

    second = Turn(elsewhere, "moved-1", prompt, [5, 6]).capture().end()
    sealed(elsewhere, 1)
    again = [*prompt, 5, 6, 7]
    parent, start = known(exporter, "moved", again)
    third = Turn(exporter, "moved-2", again, [8], parent=parent, start=start).capture().end()
    sealed(exporter, 2)

    assert (parent, start) == (first.id, 12)
    assert exporter.stats().events.get("orphaned", 0) == 0
    with RouteStoreClient(store.sidecar.url) as client:
        trajectory = client.fetch_trajectory("moved")
    stitched = stitch(trajectory, np.array([*again, 8], np.int32))
    # Each row is the one under which its token was sampled: of the turn that captured it first.
    rows = [first.rows, second.rows[12:], third.rows[len(prompt) + 1 - 12 :]]
    assert np.array_equal(stitched.experts[:-1], np.concatenate(rows))


def test_packed_turns_are_sealed_as_deltas_and_come_back_as_they_were_captured(packing, store):
    codec = packing._settings.codec
    first = Turn(packing, f"{codec}-1", [1, 2, 3], [4, 5], model=WIDE).capture().end()
    sealed(packing, 1)
    again = {"parent": first.id, "start": 4, "model": WIDE}
    second = Turn(packing, f"{codec}-2", [1, 2, 3, 4, 5, 6], [7, 8], **again).capture().end()
    sealed(packing, 2)
    header, _, _ = decode_routes(store.get(f"/v1/requests/{codec}-2/routes"))
    with RouteStoreClient(store.sidecar.url) as client:
        routes = client.fetch_request(f"{codec}-2")

    expected = np.concatenate([first.rows, second.rows])
    assert header.items[0].manifest.dtype == codec
    cell = {"bitpack": 4, "sorted": 3}[codec]
    assert header.items[0].rows_nbytes == routes.experts.nbytes * cell // WIDE.topk
    assert routes.in_order == (codec == "bitpack")
    assert np.array_equal(routes.experts, expected if routes.in_order else np.sort(expected))
