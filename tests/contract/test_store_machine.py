"""The store against a model of it: any order of uploads, seals, losses, deletions and reads."""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support.frames import make_upload
from support.fuzz import LONG, count
from support.route_store import decode_routes, results, running_store

FUZZED = "stories of 12 steps of the store against a model of it, by a state machine of hypothesis"
__all__ = ["count"]  # a fixture
EXAMPLES = 300 if LONG else 25
CHUNKS = 3
REQUESTS = st.integers(0, 1)
# The second has the content of the first, as another recorder sends it; the third has not.
UPLOADS = st.integers(0, 2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with running_store("embedded", folder, durability="memory") as running:
        yield running


class Machine(RuleBasedStateMachine):
    """One request's state is (state, upload that brought it about), or nothing."""

    store = None
    count = None
    runs = 0

    def __init__(self):
        super().__init__()
        Machine.runs += 1
        Machine.count.one()
        self.entries = {}
        self.staged = {}
        self.read_back = None

    def upload(self, request, number):
        name = f"machine-{Machine.runs}-{request}"
        seed = 1 if number == 2 else 0
        upload_id = f"0_{name}-{number}"
        return make_upload(name, seed=seed, upload_id=upload_id, prompt_len=15, completion_len=8)

    @rule(request=REQUESTS, number=UPLOADS, seq=st.integers(0, CHUNKS - 1))
    def stage(self, request, number, seq):
        self.stage_model(request, number, seq, self.upload(request, number).chunk_frame(seq))

    @rule(request=REQUESTS, number=UPLOADS)
    def stage_all(self, request, number):
        for seq in range(CHUNKS):
            self.stage(request, number, seq)

    def stage_model(self, request, number, seq, frame):
        state, owner = self.entries.get(request, (None, None))
        expected = "staged"
        if owner == number and state in ("sealed", "deleted", "dropped"):
            expected = "replayed" if state == "sealed" else state
        else:
            self.staged.setdefault((request, number), set()).add(seq)
            if state not in ("sealed", "pending"):
                self.entries[request] = ("pending", number)
        assert results(self.store.post(frame)) == [expected]

    @rule(request=REQUESTS, number=UPLOADS)
    def seal(self, request, number):
        state, owner = self.entries.get(request, (None, None))
        if state == "sealed":
            expected = "replayed" if (owner == 2) == (number == 2) else "conflict"
        elif len(self.staged.get((request, number), ())) < CHUNKS:
            expected = "incomplete"
        else:
            expected = "sealed"
            self.entries[request] = ("sealed", number)
            self.staged.pop((request, number))
        assert results(self.store.post(self.upload(request, number).seal_frame)) == [expected]

    @rule(request=REQUESTS, number=UPLOADS)
    def drop(self, request, number):
        self.staged.pop((request, number), None)
        state, owner = self.entries.get(request, (None, None))
        kept = state == "sealed" or (state == "deleted" and owner == number)
        if not kept and not (state == "pending" and owner != number):
            self.entries[request] = ("dropped", number)
        assert results(self.store.post(self.upload(request, number).drop_frame())) == ["noted"]

    @rule(request=REQUESTS)
    def delete(self, request):
        name = self.upload(request, 0).manifest.request_id
        answer = self.store.http.delete(f"/v1/requests/{name}")
        state = self.state(request)
        if state in ("sealed", "pending"):
            owner = self.entries[request][1]
            assert answer.json() == {"deleted": 1}
            self.entries[request] = ("deleted", owner)
            self.staged.pop((request, owner), None)
        else:
            assert (answer.status_code, answer.json()["code"]) == (404, state)

    @rule(request=REQUESTS)
    def read(self, request):
        state = self.state(request)
        name = self.upload(request, 0).manifest.request_id
        answer = self.store.get(f"/v1/requests/{name}/routes")
        if state != "sealed":
            assert (answer.status_code, answer.json()["code"]) == (404, state)
            return
        upload = self.upload(request, self.entries[request][1])
        _, (rows,), (tokens,) = decode_routes(answer)
        assert np.array_equal(rows, upload.experts)
        assert np.array_equal(tokens, upload.token_ids)

    def state(self, request):
        state, owner = self.entries.get(request, ("not_found", None))
        if state == "pending" and not self.staged.get((request, owner)):
            return "dropped"
        return state

    @invariant()
    def what_is_visible_is_what_the_model_says(self):
        for request in self.entries:
            self.read(request)


def test_any_order_leads_where_the_model_says(store, count):
    Machine.store, Machine.count = store, count
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    left = [key for key in store.engine.scan_iter(count=1000) if store.engine.ttl(key) < 0]
    assert left == []
