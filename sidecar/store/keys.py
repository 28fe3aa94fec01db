"""Names of everything in the engine, built here and nowhere else.

    rr:{NAME}                   string  pointer: where a request id or alias leads
    rr:{TAG}:q                  set     request ids of the tag
    rr:{TAG}:s:REQUEST          hash    choice -> "state upload detail"; outlives the record
    rr:{TAG}:u:UPLOAD           hash    position -> staged chunk; gone once sealed
    rr:{TAG}:n                  hash    what has arrived under the tag within a record's life
    rr:{TAG}:w                  string  written and awaited on a replica; nothing in it
    rr:{TAG}:m:REQUEST:CHOICE   hash    the sealed record
    rr:{TAG}:b:UPLOAD:...       string  a value of routes or token ids
    rr:{epoch}                  string  identity of the engine's data
    rr:{NAMESPACE/journal}      stream  the latest events, capped; for people
    rr:{NAMESPACE/journal}:WIDTH:NUMBER  hash    what was sealed in a slice of time; for people

TAG is `NAMESPACE/t:TRAJECTORY`, or `NAMESPACE/r:REQUEST` for a request without one; NAME is
`NAMESPACE/i:ID`. The namespace comes from the caller's API key, never from what it sends.
The braces make a hash tag of Redis Cluster: everything of a trajectory is on one node,
where one script can see it. Ids are checked or normalised before they come here, so they
hold no brace and no slash.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from routereplay.sidecar.store.base import Lead, Pointer, RecordKey

EPOCH = "rr:{epoch}"
"""The key of the engine's identity: when it is gone, so is everything else."""


def tag_of(namespace: str, request_id: str, trajectory_id: str | None) -> str:
    """Return the tag that a request's data lives under."""
    if trajectory_id is None:
        return f"{namespace}/r:{request_id}"
    return trajectory_tag(namespace, trajectory_id)


def trajectory_tag(namespace: str, trajectory_id: str) -> str:
    """Return the tag of a trajectory."""
    return f"{namespace}/t:{trajectory_id}"


class Owned(Protocol):
    """What belongs to one choice of a request: a chunk, a manifest, a drop."""

    @property
    def request_id(self) -> str:
        """Of its request."""

    @property
    def choice(self) -> int:
        """Of the request."""

    @property
    def trajectory_id(self) -> str | None:
        """Of the request, if it is a turn."""


def record_key(namespace: str, one: Owned) -> RecordKey:
    """Return where the record of something lives."""
    tag = tag_of(namespace, one.request_id, one.trajectory_id)
    return RecordKey(tag, one.request_id, one.choice)


def leads_to(namespace: str, key: RecordKey, aliases: Iterable[str]) -> list[Lead]:
    """Return what leads every name of a request to its record: its own id first."""
    pointer = Pointer(key.tag, key.request_id)
    return [Lead(name_of(namespace, one), pointer) for one in (key.request_id, *aliases)]


def name_of(namespace: str, item_id: str) -> str:
    """Return what an index knows a request id or an alias by."""
    return f"{namespace}/i:{item_id}"


def trajectory_of(tag: str) -> str | None:
    """Return the trajectory that a tag belongs to, or None for a request of its own."""
    kind, name = tag.partition("/")[2].split(":", 1)
    return name if kind == "t" else None


def pointer(name: str) -> str:
    """Return the key of the pointer of a `name_of`."""
    return f"rr:{{{name}}}"


def requests(tag: str) -> str:
    """Return the key of the set of request ids under `tag`."""
    return f"rr:{{{tag}}}:q"


def status(tag: str, request_id: str) -> str:
    """Return the key of a request's states."""
    return f"rr:{{{tag}}}:s:{request_id}"


def upload(tag: str, upload_id: str) -> str:
    """Return the key of what an upload has staged."""
    return f"rr:{{{tag}}}:u:{upload_id}"


def arrived(tag: str) -> str:
    """Return the key of what has arrived under `tag` within a record's life."""
    return f"rr:{{{tag}}}:n"


def barrier(tag: str) -> str:
    """Return the key of the write that a replica is waited for with."""
    return f"rr:{{{tag}}}:w"


def record(key: RecordKey) -> str:
    """Return the key of a sealed record."""
    return f"rr:{{{key.tag}}}:m:{key.request_id}:{key.choice}"


def blob(tag: str, upload_id: str, what: str, digest: bytes, split: str, part: int) -> str:
    """Return the key of one value.

    The digest and how it was split and laid out are part of it, so two different values can never
    meet under one key, and a retry can never damage what is sealed.
    """
    return f"rr:{{{tag}}}:b:{upload_id}:{what}:{digest.hex()}.{split}:{part}"


def templates() -> tuple[str, str, str]:
    """Return the keys of states, records and uploads for a script, with `%s` for their parts.

    Those of a record are its tag, its request and its choice, of the others the first two.
    """
    upload_key, of_record = upload("%s", "%s"), RecordKey("%s", "%s", 0)
    return status("%s", "%s"), record(of_record).removesuffix("0") + "%s", upload_key


def journal(namespace: str) -> str:
    """Return the key of the latest events of a namespace."""
    return f"rr:{{{namespace}/journal}}"


def sealed_counts(journal_key: str, width_s: int, number: int) -> str:
    """Return the key of what was sealed in slice `number` of `width_s` seconds each."""
    return f"{journal_key}:{width_s}:{number}"
