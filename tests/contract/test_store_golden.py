"""Frames of an earlier release are stored, and what is served holds what it reads."""

from pathlib import Path

import numpy as np
from support.frames import make_upload
from support.route_store import decode_routes, results

GOLDEN = Path(__file__).parents[1] / "golden" / "wire-1"


def test_an_upload_of_an_earlier_release_is_stored_and_served(store):
    chunks, seal, delta = ((GOLDEN / f"{n}.bin").read_bytes() for n in ("chunks", "seal", "delta"))

    first = store.post(chunks + seal)
    second = store.post(delta)

    assert set(results(first)) == {"staged", "sealed"}
    assert results(second)[-1] == "sealed"
    upload = make_upload("golden-0", seed=1, num_experts=300)
    _, (rows,), _ = decode_routes(store.get("/v1/requests/golden-alias/routes"))
    assert np.array_equal(rows, upload.experts)
    _, (whole,), _ = decode_routes(store.get("/v1/requests/golden-0+/routes"))
    assert np.array_equal(whole[:20], upload.experts[:20])
    assert store.post((GOLDEN / "drop.bin").read_bytes()).json()["results"][0]["status"] == "noted"
