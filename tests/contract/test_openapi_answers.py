"""JSON answers are what the store's description says of them."""

import jsonschema
import pytest
from support.frames import make_conversation, make_upload


@pytest.fixture
def described(store):
    """Validates an answer of an operation by the description; returns the answer."""
    schema = store.get("/openapi.json").json()

    def check(method: str, path: str, answer) -> dict:
        assert answer.status_code == 200, answer.text
        answers = schema["paths"][path][method]["responses"]["200"]["content"]
        reference = answers["application/json"]["schema"]
        assert reference, f"{method} {path} is not described"
        document = {**reference, "components": schema["components"]}
        jsonschema.validate(answer.json(), document)
        return answer.json()

    return check


@pytest.mark.parametrize("kind", ["requests", "trajectories"])
def test_states_and_loads_have_the_described_fields(store, described, kind):
    name = f"described-{kind}"
    first, *_ = [store.put(turn) for turn in make_conversation(name, turns=2, seed=330)]
    if kind == "requests":
        path, url = "/v1/requests/{request_id}", f"/v1/requests/{first.manifest.request_id}"
    else:
        path, url = "/v1/trajectories/{trajectory_id}", f"/v1/trajectories/{name}"

    described("get", path, store.get(url))
    load = described("get", f"{path}/experts", store.get(f"{url}/experts"))
    deleted = described("delete", path, store.http.delete(url))

    assert load["rows"] > 0
    assert deleted["deleted"] >= 1


def test_the_result_of_an_ingest_has_the_described_fields(store, described):
    upload = make_upload("described-ingest", seed=331)

    first = described("post", "/v1/ingest", store.http.post("/v1/ingest", content=upload.body))

    assert [result["status"] for result in first["results"]][-1] == "sealed"


def test_turns_without_routes_have_the_described_fields(store, described):
    kept, pending, lost = make_conversation("described-states", turns=3, seed=332)
    store.put(kept)
    store.post(pending.chunk_frames[0])
    store.post(lost.drop_frame("queue_full"))

    answer = store.get("/v1/trajectories/described-states")
    found = described("get", "/v1/trajectories/{trajectory_id}", answer)

    states = {turn["state"]: turn for turn in found["turns"]}
    assert set(states) == {"sealed", "pending", "dropped"}
    assert states["dropped"]["reason"] == "queue_full"
