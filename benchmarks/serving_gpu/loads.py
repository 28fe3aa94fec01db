"""The two loads: many requests that decode, and conversations whose prompts grow.

As the reference measurement of this project ran them: 256 requests, 128 at a time, 512
tokens in and 256 out; 32 conversations of 10 turns, 1000 new tokens a turn and 64 out.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import aiohttp
import numpy as np


@dataclass
class Seen:
    """What one load saw."""

    latencies_s: list[float] = field(default_factory=list)
    nbytes: int = 0
    tokens: int = 0
    requests: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        """Return what is reported."""
        return {
            "seconds": round(self.seconds, 3),
            "generated_tokens_per_s": round(self.tokens / self.seconds, 1),
            "requests_per_s": round(len(self.latencies_s) / self.seconds, 3),
            "response_bytes_per_request": round(self.nbytes / len(self.latencies_s)),
            "p50_s": round(float(np.quantile(self.latencies_s, 0.5)), 3),
            "p95_s": round(float(np.quantile(self.latencies_s, 0.95)), 3),
        }


class Load:
    """Requests to one server."""

    sampling: ClassVar[dict[str, float]] = {"temperature": 1.0, "seed": 1}

    def __init__(
        self, http: aiohttp.ClientSession, url: str, seed: int, xargs: Mapping[str, str]
    ) -> None:
        self._http = http
        self._url = url
        self._xargs = xargs
        self._draw = np.random.default_rng(seed)
        self._seen = Seen()

    async def decoding(
        self, requests: int = 256, at_a_time: int = 128, prompt: int = 512, output: int = 256
    ) -> Seen:
        """Independent requests."""
        turns = asyncio.Semaphore(at_a_time)

        async def one() -> None:
            async with turns:
                await self._post(self._tokens(prompt), output, None)

        return await self._timed([one() for _ in range(requests)])

    async def conversations(
        self, conversations: int = 32, turns: int = 10, new: int = 1000, output: int = 64
    ) -> Seen:
        """Conversations, each turn on top of what was said before."""

        async def one() -> None:
            session = f"c-{uuid.uuid4().hex}"
            self._seen.sessions.append(session)
            tokens = self._tokens(new)
            for _ in range(turns):
                said = await self._post(tokens, output, session)
                tokens = tokens + said + self._tokens(new)

        return await self._timed([one() for _ in range(conversations)])

    async def _timed(self, tasks: list[Any]) -> Seen:
        started = time.perf_counter()
        await asyncio.gather(*tasks)
        self._seen.seconds = time.perf_counter() - started
        return self._seen

    async def _post(self, tokens: list[int], output: int, session: str | None) -> list[int]:
        body: dict[str, Any] = {
            "model": "m",
            "prompt": tokens,
            "max_tokens": output,
            **self.sampling,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        xargs = dict(self._xargs)
        if session:
            # Known to every release; the header X-Session-ID to vLLM 0.28 and newer only.
            xargs["trajectory_id"] = session
        if xargs:
            body["vllm_xargs"] = xargs
        started = time.perf_counter()
        async with self._http.post(f"{self._url}/v1/completions", json=body) as response:
            text = await response.read()
        if response.status != 200:
            msg = f"status {response.status}: {text[:300]!r}"
            raise RuntimeError(msg)
        seen = self._seen
        seen.latencies_s.append(time.perf_counter() - started)
        seen.nbytes += len(text)
        seen.tokens += output
        # Read as a client of JSON must, in every mode alike; outside of the latency.
        answer = json.loads(text)
        seen.requests.append(answer["id"])
        said: list[int] = answer["choices"][0]["token_ids"]
        if len(said) != output:
            msg = f"{len(said)} tokens where {output} were asked for"
            raise RuntimeError(msg)
        return said

    def _tokens(self, count: int) -> list[int]:
        return self._draw.integers(10, 500, count).tolist()
