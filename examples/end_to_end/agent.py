"""A small agent: conversations of three turns through the plain `openai` client.

Nothing here knows about routes. The trajectory travels as the `X-Session-ID` header.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from openai import OpenAI

ASKED = 21
"""Log-probs asked for: vLLM puts the sampled token first and then cuts, so that the 20
likeliest are only surely there if 21 are asked for (and the server allows it)."""
TOP = 20


@dataclass
class Sample:
    """What an RL trainer keeps of one sampled token."""

    position: int
    """Index in the episode's token sequence."""
    token_id: int
    log_prob: float
    top: dict[int, float]
    """The 20 likeliest tokens and their log-probs, likeliest first."""


@dataclass
class Episode:
    """One conversation as the agent and the trainer see it."""

    trajectory_id: str
    style: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    token_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """`[tokens]` int32, rendered by the trainer's own tokenizer and chat template."""

    @property
    def samples_per_turn(self) -> int:
        """Choices asked for with each request."""
        return 2 if self.style == "two choices" else 1

    @property
    def choices(self) -> list[tuple[str, int]]:
        """Request id and index of every choice of every turn."""
        indices = range(self.samples_per_turn)
        return [(request_id, index) for request_id in self.request_ids for index in indices]


STYLES = {
    "plain": "a plain conversation",
    "streaming": "every turn streamed",
    "two choices": "n = 2, the second choice goes on",
    "tool": "tool messages between the turns",
}

_QUESTIONS = ("What is a router?", "And an expert?", "Say it in one word.")


class Agent:
    """Talks to one OpenAI server, and renders what was said with the trainer's tokenizer."""

    def __init__(self, base_url: str, tokenizer: Any, *, max_tokens: int = 32) -> None:
        self._openai = OpenAI(base_url=f"{base_url}/v1", api_key="none", timeout=300)
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def play(self, trajectory_id: str, style: str, turns: int = 3) -> Iterator[Episode]:
        """Play an episode; yields it after each turn."""
        episode = Episode(trajectory_id, style)
        for turn in range(turns):
            episode.messages.append(self._question(style, turn))
            prompt = self._render(episode.messages)
            request_id, content, sampled = self._ask(episode, seed=turn)
            episode.request_ids.append(request_id)
            episode.messages.append({"role": "assistant", "content": content})
            for offset, (token_id, log_prob, top) in enumerate(sampled):
                episode.samples.append(Sample(len(prompt) + offset, token_id, log_prob, top))
            completion = [token_id for token_id, _, _ in sampled]
            episode.token_ids = np.asarray([*prompt, *completion], np.int32)
            yield episode

    def _question(self, style: str, turn: int) -> dict[str, Any]:
        if style == "tool" and turn:
            result = f'{{"result": {turn * 21}}}'
            return {"role": "tool", "tool_call_id": f"call-{turn}", "content": result}
        return {"role": "user", "content": f"{_QUESTIONS[turn % len(_QUESTIONS)]} ({style})"}

    def _render(self, messages: list[dict[str, Any]]) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def _ask(
        self, episode: Episode, seed: int
    ) -> tuple[str, str, list[tuple[int, float, dict[int, float]]]]:
        arguments: dict[str, Any] = {
            "model": "tiny",
            "messages": episode.messages,
            "max_tokens": self._max_tokens,
            "temperature": 1.0,
            "seed": seed,
            "n": episode.samples_per_turn,
            "logprobs": True,
            "top_logprobs": ASKED,
            "extra_headers": {"X-Session-ID": episode.trajectory_id},
            # Token ids instead of texts in the log-probs, as trainers ask for them.
            "extra_body": {"return_tokens_as_token_ids": True},
        }
        if episode.style == "streaming":
            return self._stream(arguments)
        response = self._openai.chat.completions.create(**arguments)
        choice = response.choices[-1]
        return response.id, choice.message.content or "", _sampled(choice.logprobs.content)

    def _stream(
        self, arguments: dict[str, Any]
    ) -> tuple[str, str, list[tuple[int, float, dict[int, float]]]]:
        request_id, text, sampled = "", [], []
        for event in self._openai.chat.completions.create(**arguments, stream=True):
            request_id = event.id
            for choice in event.choices:
                text.append(choice.delta.content or "")
                if choice.logprobs:
                    sampled.extend(_sampled(choice.logprobs.content))
        return request_id, "".join(text), sampled


def _sampled(entries: Any) -> list[tuple[int, float, dict[int, float]]]:
    return [
        (
            _token_id(entry.token),
            entry.logprob,
            _likeliest(entry.top_logprobs),
        )
        for entry in entries
    ]


def _likeliest(entries: Any) -> dict[int, float]:
    ranked = sorted(entries, key=lambda entry: entry.logprob, reverse=True)
    return {_token_id(entry.token): entry.logprob for entry in ranked[:TOP]}


def _token_id(text: str) -> int:
    return int(text.removeprefix("token_id:"))
