"""What must be in a store after a fault: every acknowledged upload, byte for byte."""

from __future__ import annotations

import httpx
import numpy as np

from routereplay.wire import MEDIA_TYPE
from support.frames import Upload
from support.route_store import decode_routes


class Oracle:
    """Remembers which uploads a store acknowledged and compares what it returns later."""

    def __init__(self) -> None:
        self.acked: list[Upload] = []
        self.refused: list[Upload] = []
        """Uploads without an acknowledgement: they may be there, whole, or not at all."""

    def put(self, http: httpx.Client, upload: Upload) -> bool:
        """Post a whole upload; return whether it was acknowledged."""
        try:
            response = http.post(
                "/v1/ingest", content=upload.body, headers={"Content-Type": MEDIA_TYPE}
            )
            taken = response.status_code == 200
        except httpx.TransportError:
            taken = False
        (self.acked if taken else self.refused).append(upload)
        return taken

    def lost(self, http: httpx.Client) -> int:
        """How many acknowledged uploads cannot be read."""
        return sum(self._read(http, upload).status_code != 200 for upload in self.acked)

    def wrong(self, http: httpx.Client) -> int:
        """How many uploads, acknowledged or not, are answered with other rows or tokens."""
        return sum(not self._is_right(http, upload) for upload in [*self.acked, *self.refused])

    def _read(self, http: httpx.Client, upload: Upload) -> httpx.Response:
        manifest = upload.manifest
        path = f"/v1/requests/{manifest.request_id}/routes"
        return http.get(path, params={"choice": manifest.choice})

    def _is_right(self, http: httpx.Client, upload: Upload) -> bool:
        response = self._read(http, upload)
        if response.status_code != 200:
            return True
        _, rows, tokens = decode_routes(response)
        return np.array_equal(rows[0], upload.experts) and np.array_equal(
            tokens[0], upload.token_ids
        )
