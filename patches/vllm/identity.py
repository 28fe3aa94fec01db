"""Under which ids a request is recorded: the ones its client can know.

The engine's own ids differ from what the client sees. `/v1/completions` gives every
prompt of a request its own engine request `cmpl-<base>-<prompt>` and numbers the choices
through all of them; offline `LLM` counts from 0 in every process.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any, NamedTuple

from routereplay.wire.ids import normalize_id

_COMPLETION = re.compile(r"(cmpl-.+)-(\d+)", re.DOTALL)
_RESPONSE = re.compile(r"(resp_.+)_(\d+)", re.DOTALL)
_OFFLINE = re.compile(r"\d+")
_PREFIXES = ("chatcmpl-", "cmpl-", "generate-tokens-")


class ClientId(NamedTuple):
    """How the client finds one choice."""

    request_id: str
    choice: int
    aliases: tuple[str, ...]


def client_id(external_id: str, index: int, n: int, engine_id: str) -> ClientId:
    """Return the client's view of choice `index` of the engine request `external_id`.

    Args:
        external_id: `external_req_id` of the engine request.
        index: which of the `n` samples of its prompt.
        n: samples per prompt.
        engine_id: this process, which makes the counter ids of offline `LLM` unique.
    """
    if match := _COMPLETION.fullmatch(external_id):
        external_id, index = match[1], int(match[2]) * n + index
    if _OFFLINE.fullmatch(external_id):
        return ClientId(f"{engine_id}.{external_id}", index, ())
    request_id = normalize_id(external_id)
    return ClientId(request_id, index, _aliases(external_id, request_id))


def whole_client_id(external_id: str) -> ClientId:
    """Return the client's view of a request of the Rust front end: one choice, under its own id.

    Nothing in the id is a number of a prompt or a counter: it ends with the client's
    `X-Request-Id`, or with eight random hexadecimal digits.
    """
    request_id = normalize_id(external_id)
    return ClientId(request_id, 0, _aliases(external_id, request_id))


def _aliases(external_id: str, request_id: str) -> tuple[str, ...]:
    if (match := _RESPONSE.fullmatch(external_id)) and match[2] == "0":
        # The client of /v1/responses sees the id without the number of the tool round.
        return (normalize_id(match[1]),)
    for prefix in _PREFIXES:
        if external_id.startswith(prefix):
            # Whatever the client sent as X-Request-Id stands behind the prefix.
            alias = normalize_id(external_id.removeprefix(prefix))
            return (alias,) if alias != request_id else ()
    return ()


def is_beam(external_id: str) -> bool:
    """Tell whether this is one step of one beam: server-side beam search has no routes."""
    return "-beam-" in external_id


def trajectory_id(session_id: str | None, extra_args: dict[str, Any]) -> str | None:
    """Return the normalised trajectory id, or None.

    `vllm_xargs.trajectory_id` wins over the session id (`X-Session-ID`, `session_id`),
    which some deployments use to steer requests to a replica.
    """
    given = extra_args.get("trajectory_id")
    if isinstance(given, int):
        given = str(given)
    if isinstance(given, str) and given:
        return normalize_id(given)
    return normalize_id(session_id) if session_id else None


class Ordinals:
    """Numbers the requests of each trajectory; remembers the `limit` last used ones.

    All choices of one request share its ordinal.
    """

    def __init__(self, limit: int = 65_536) -> None:
        self._limit = limit
        self._next: OrderedDict[str, int] = OrderedDict()
        self._given: OrderedDict[tuple[str, str], int] = OrderedDict()

    def of(self, trajectory: str | None, request_id: str) -> int:
        """Return the position of `request_id` in `trajectory`, from 0."""
        if trajectory is None:
            return 0
        key = (trajectory, request_id)
        ordinal = self._given.get(key)
        if ordinal is None:
            ordinal = self._next.pop(trajectory, 0)
            self._next[trajectory] = ordinal + 1
            self._given[key] = ordinal
            self._forget()
        return ordinal

    def _forget(self) -> None:
        while len(self._next) > self._limit:
            self._next.popitem(last=False)
        while len(self._given) > self._limit:
            self._given.popitem(last=False)
