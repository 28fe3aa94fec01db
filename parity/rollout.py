"""Sample trajectories from a vLLM server, token ids in and token ids out.

A prompt has one turn or several: what stands in the later ones is appended to what was
sampled, as tokens, so that every turn extends the one before.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from routereplay.parity.errors import EngineFailed
from routereplay.parity.metrics import TopLogprobs
from routereplay.parity.sampled import SampledTokens

TOP = 20
"""The likeliest tokens that are compared; vLLM's own limit unless its server raises it."""


@dataclass(frozen=True, eq=False, slots=True)
class Rollout:
    """One trajectory: its tokens, and what the engine said of those that it sampled."""

    trajectory_id: str
    token_ids: np.ndarray
    """`[tokens]` int32."""
    sampled: SampledTokens
    """Positions count from the trajectory's first token."""


class Engine:
    """A vLLM server's completions API.

    Args:
        base_url: without `/v1`.
        model: its served name.
        concurrency: requests in flight.
    """

    def __init__(self, base_url: str, model: str, *, concurrency: int = 16) -> None:
        self._model = model
        self._request_ids: list[str] = []
        self._pool = ThreadPoolExecutor(concurrency)
        self._http = httpx.Client(
            base_url=base_url,
            trust_env=False,
            timeout=600.0,
            limits=httpx.Limits(max_connections=concurrency),
        )

    def play(
        self,
        prompts: Sequence[Sequence[Sequence[int]]],
        *,
        name: str,
        max_tokens: int,
        seed: int,
        ignore_eos: bool = False,
    ) -> list[Rollout]:
        """Sample a trajectory for each prompt, at temperature 1; ids are `name-0`, `name-1`, ...

        Args:
            prompts: for each trajectory its turns, each a list of token ids.
            max_tokens: of each turn.
            ignore_eos: sample on after the end of a text.
        """

        def one(item: tuple[int, Sequence[Sequence[int]]]) -> Rollout:
            number, turns = item
            options = {"max_tokens": max_tokens, "seed": seed + number, "ignore_eos": ignore_eos}
            return self._play_one(f"{name}-{number}", turns, options)

        return list(self._pool.map(one, enumerate(prompts)))

    def rescore(self, rollouts: Sequence[Rollout], *, suffix: str) -> list[SampledTokens]:
        """Let the engine read each trajectory as a prompt: what it says of the same tokens now.

        Each is recorded as a trajectory of its own, `<trajectory_id><suffix>`, and nothing of
        it comes out of a prefix cache: a salt of its own keeps what was computed before away.
        """
        salt = secrets.token_hex(8)

        def one(rollout: Rollout) -> SampledTokens:
            choice = self._complete(
                rollout.token_ids.tolist(),
                trajectory_id=rollout.trajectory_id + suffix,
                max_tokens=1,
                prompt_logprobs=TOP,
                cache_salt=salt,
            )
            entries = choice["prompt_logprobs"]
            found = [
                {int(token): value["logprob"] for token, value in entries[position].items()}
                for position in rollout.sampled.positions
            ]
            tokens = rollout.token_ids[rollout.sampled.positions].tolist()
            return _sampled(rollout.sampled.positions, tokens, found)

        return list(self._pool.map(one, rollouts))

    def take_request_ids(self) -> list[str]:
        """Return the ids of the requests that were answered since the last call."""
        taken, self._request_ids = self._request_ids, []
        return taken

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(cancel_futures=True)
        self._http.close()

    def _play_one(
        self, trajectory_id: str, turns: Sequence[Sequence[int]], options: dict[str, Any]
    ) -> Rollout:
        tokens: list[int] = []
        positions: list[int] = []
        found: list[dict[int, float]] = []
        for turn in turns:
            tokens.extend(turn)
            choice = self._complete(
                tokens,
                trajectory_id=trajectory_id,
                logprobs=TOP,
                return_tokens_as_token_ids=True,
                return_token_ids=True,
                **options,
            )
            sampled = choice["token_ids"]
            positions.extend(range(len(tokens), len(tokens) + len(sampled)))
            for token, logprob, top in zip(
                sampled,
                choice["logprobs"]["token_logprobs"],
                choice["logprobs"]["top_logprobs"],
                strict=True,
            ):
                found.append({_token_id(text): value for text, value in top.items()})
                found[-1][token] = logprob
            tokens.extend(sampled)
        row = np.asarray(tokens, np.int32)
        where = np.asarray(positions, np.int64)
        return Rollout(trajectory_id, row, _sampled(where, row[where].tolist(), found))

    def _complete(self, prompt: list[int], *, trajectory_id: str, **body: Any) -> dict[str, Any]:
        response = self._http.post(
            "/v1/completions",
            json={
                "model": self._model,
                "prompt": prompt,
                "temperature": 1.0,
                "vllm_xargs": {"trajectory_id": trajectory_id},
            }
            | body,
        )
        if response.status_code != 200:
            msg = f"vLLM answered {response.status_code} to {trajectory_id}: {response.text[:500]}"
            raise EngineFailed(msg, trajectory_id=trajectory_id)
        answer = response.json()
        self._request_ids.append(answer["id"])
        choice: dict[str, Any] = answer["choices"][0]
        return choice


def _sampled(
    positions: np.ndarray, tokens: list[int], found: list[dict[int, float]]
) -> SampledTokens:
    """Return the log-probs of `tokens` and, at each, the likeliest ones in order."""
    ranked = [sorted(entry.items(), key=lambda item: -item[1])[:TOP] for entry in found]
    short = next((len(entry) for entry in ranked if len(entry) < TOP), None)
    if short is not None:
        msg = f"vLLM returned the {short} likeliest tokens where {TOP} were asked for"
        raise EngineFailed(msg)
    return SampledTokens(
        positions=positions,
        logprobs=np.array([entry[token] for token, entry in zip(tokens, found, strict=True)]),
        top=TopLogprobs(
            np.array([[token for token, _ in entry] for entry in ranked]),
            np.array([[value for _, value in entry] for entry in ranked]),
        ),
    )


def _token_id(text: str) -> int:
    return int(text.removeprefix("token_id:"))
