"""Whether the store has what the load produced: a fast recorder that lost rows is no result."""

from __future__ import annotations

import time

from routereplay.client import RouteStoreClient
from routereplay.wire.errors import RouteReplayError
from serving_gpu.loads import Seen

SETTLE_S = 30.0


def kept(store_url: str, seen: Seen) -> dict[str, int]:
    """Return how many requests and rows of a load are sealed, and how many are not."""
    with RouteStoreClient(store_url) as store:
        manifests = [_sealed(store, request_id) for request_id in seen.requests]
    found = [manifest for manifest in manifests if manifest is not None]
    return {
        "requests": len(manifests),
        "sealed": len(found),
        "rows": sum(manifest["rows"] for manifest in found),
        "tokens": sum(m["prompt_len"] + m["completion_len"] for m in found),
    }


def _sealed(store: RouteStoreClient, request_id: str) -> dict[str, int] | None:
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            (choice,) = store.get_request(request_id)["choices"]
        except RouteReplayError as error:
            state, last = "missing", str(error)
        else:
            state, last = choice["state"], choice["reason"]
            if state == "sealed":
                manifest: dict[str, int] = choice["manifest"]
                return manifest
        if state == "dropped" or time.monotonic() > deadline:
            print(f"{request_id}: {state}: {last}")
            return None
        time.sleep(0.1)
