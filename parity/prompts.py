"""Prompts from a file to token ids: what `routereplay parity` lets the engine continue."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEFAULT_PROMPTS = (
    "The router of a mixture of experts",
    "def quicksort(values):",
    "Once upon a time",
    "Write a haiku about rivers.",
    "The capital of France is",
    "import numpy as np\n\n\ndef softmax(x):",
    "To be, or not to be:",
    "SELECT name, count(*) FROM",
)


def read_prompts(path: Path) -> list[list[str] | list[dict[str, Any]]]:
    """Read prompts, one a line: text, or a JSON object with `prompt`, `turns` or `messages`.

    `turns` is a list of texts: the first is the prompt, each later one follows what was
    sampled after the one before. `messages` are rendered by the chat template.

    Raises:
        ValueError: a line that is none of these, with its number; or no line.
    """
    found: list[list[str] | list[dict[str, Any]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        if not line.lstrip().startswith("{"):
            found.append([line])
            continue
        try:
            found.append(_of_object(json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            msg = (
                f"{path}, line {number}: {error}; expected text or a JSON object with "
                '"prompt", "turns" or "messages"'
            )
            raise ValueError(msg) from error
    if not found:
        msg = f"{path} holds no prompt"
        raise ValueError(msg)
    return found


def encode_prompts(
    tokenizer: Any, prompts: Sequence[list[str] | list[dict[str, Any]]]
) -> list[list[list[int]]]:
    """Return, for each prompt, the token ids of its turns."""
    return [
        [list(tokenizer.encode(text, add_special_tokens=False)) for text in _texts(tokenizer, one)]
        for one in prompts
    ]


def _texts(tokenizer: Any, prompt: list[str] | list[dict[str, Any]]) -> list[str]:
    if isinstance(prompt[0], str):
        return [str(text) for text in prompt]
    return [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)]


def _of_object(line: Any) -> list[str] | list[dict[str, Any]]:
    if isinstance(line.get("prompt"), str):
        return [line["prompt"]]
    for key, kind in (("turns", str), ("messages", dict)):
        items = line.get(key)
        if isinstance(items, list) and items and all(isinstance(item, kind) for item in items):
            return items
    msg = f"found the keys {sorted(line)}"
    raise TypeError(msg)
