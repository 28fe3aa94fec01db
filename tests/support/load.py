"""A load on a store from a few threads, with an oracle of what it acknowledged."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import httpx
import numpy as np

from routereplay.wire import MEDIA_TYPE
from support.frames import Upload, make_upload
from support.route_store import decode_routes


class Answer(NamedTuple):
    """One POST: when it began, how long it took, its status; 0 without an answer."""

    began: float
    seconds: float
    status: int


class Load:
    """`with Load(url): ...` posts whole uploads without a pause until the block ends.

    An upload that is not acknowledged is offered again until it is, as a recorder does.
    """

    def __init__(self, url: str, *, threads: int = 2, prefix: str = "load", **shape) -> None:
        self._url = url
        self._shape = {"num_layers": 8, "topk": 4, "prompt_len": 200, "chunk_rows": 100, **shape}
        self._prefix = prefix
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]
        self.acked: list[Upload] = []
        self.offered: list[Upload] = []
        self.answers: list[Answer] = []
        self._began = self._ended = 0.0

    def __enter__(self) -> Load:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        self._ended = self._ended or time.monotonic()

    @property
    def described(self) -> str:
        seconds = max(self._ended - self._began, 0.001)
        nbytes = sum(len(upload.body) for upload in self.acked)
        return f"{len(self.acked) / seconds:.0f} records/s, {nbytes / seconds / 1e6:.1f} MB/s"

    def between(self, start: float, stop: float) -> list[Answer]:
        return [answer for answer in self.answers if start <= answer.began < stop]

    def first_success_after(self, moment: float) -> float:
        """Seconds from `moment` to the end of the first acknowledged POST begun after it."""
        done = [a.began + a.seconds for a in self.answers if a.status == 200 and a.began >= moment]
        return min(done) - moment

    def wait_for(self, more: int, timeout_s: float = 30.0) -> None:
        """Wait until `more` records are acknowledged from now on."""
        target, deadline = len(self.acked) + more, time.monotonic() + timeout_s
        while len(self.acked) < target:
            assert time.monotonic() < deadline, f"{len(self.acked)} of {target} acknowledged"
            time.sleep(0.02)

    def judge(self, verdict, url: str | None = None) -> None:
        """Read everything back and fill in the verdict."""
        self.stop()
        verdict.load = verdict.load or self.described
        verdict.acked += len(self.acked)
        acked = {upload.manifest.request_id for upload in self.acked}
        with httpx.Client(base_url=url or self._url, timeout=30, trust_env=False) as http:
            for upload in self.offered:
                name = upload.manifest.request_id
                response = http.get(f"/v1/requests/{name}/routes")
                deadline = time.monotonic() + 10
                while response.status_code == 503 and time.monotonic() < deadline:
                    # Not lost: the store asks to come again, as every client does.
                    time.sleep(0.2)
                    response = http.get(f"/v1/requests/{name}/routes")
                if response.status_code != 200:
                    if name in acked:
                        verdict.lost += 1
                        verdict.note += f" {name}: {response.text[:300]}"
                    continue
                _, rows, tokens = decode_routes(response)
                same = np.array_equal(rows[0], upload.experts)
                verdict.wrong += not (same and np.array_equal(tokens[0], upload.token_ids))

    def _run(self, thread: int) -> None:
        number = 0
        with httpx.Client(base_url=self._url, timeout=10, trust_env=False) as http:
            while not self._stop.is_set():
                name = f"{self._prefix}-{thread}-{number}"
                seed = thread * 100_000 + number
                upload = make_upload(name, seed=seed, trajectory_id=f"t-{name}", **self._shape)
                self.offered.append(upload)
                number += 1
                while not self._stop.is_set() and not self._offer(http, upload):
                    time.sleep(0.05)

    def _offer(self, http: httpx.Client, upload: Upload) -> bool:
        began = time.monotonic()
        headers = {"Content-Type": MEDIA_TYPE}
        try:
            response = http.post("/v1/ingest", content=upload.body, headers=headers)
            status = response.status_code
        except httpx.TransportError:
            status = 0
        self.answers.append(Answer(began, time.monotonic() - began, status))
        if status == 200:
            self.acked.append(upload)
        return status == 200
