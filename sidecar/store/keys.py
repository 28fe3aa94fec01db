"""Names of everything in the engine, built here and nowhere else.

    rr:{i:ID}                   string  pointer: where a request id or alias leads
    rr:{TAG}:q                  set     request ids of the tag
    rr:{TAG}:s:REQUEST          hash    choice -> "state upload detail"; outlives the record
    rr:{TAG}:u:UPLOAD           hash    position -> staged chunk; gone once sealed
    rr:{TAG}:m:REQUEST:CHOICE   hash    the sealed record
    rr:{TAG}:b:UPLOAD:...       string  a value of routes or token ids
    rr:{journal}                stream  the latest events, capped; for people
    rr:{journal}:WIDTH:NUMBER   hash    what was sealed in a slice of time; for people

TAG is `t:TRAJECTORY`, or `r:REQUEST` for a request without one. The braces make it a
hash tag of Redis Cluster: everything of a trajectory is on one node, where one script
can see it. Ids are checked or normalised before they come here, so they hold no brace.
"""

from __future__ import annotations

from routereplay.sidecar.store.base import RecordKey

JOURNAL = "rr:{journal}"
"""The key of the latest events."""


def tag_of(request_id: str, trajectory_id: str | None) -> str:
    """Return the tag that a request's data lives under."""
    return f"r:{request_id}" if trajectory_id is None else trajectory_tag(trajectory_id)


def trajectory_tag(trajectory_id: str) -> str:
    """Return the tag of a trajectory."""
    return f"t:{trajectory_id}"


def trajectory_of(tag: str) -> str | None:
    """Return the trajectory that a tag belongs to, or None for a request of its own."""
    kind, name = tag.split(":", 1)
    return name if kind == "t" else None


def pointer(name: str) -> str:
    """Return the key of a request id's or alias's pointer."""
    return f"rr:{{i:{name}}}"


def requests(tag: str) -> str:
    """Return the key of the set of request ids under `tag`."""
    return f"rr:{{{tag}}}:q"


def status(tag: str, request_id: str) -> str:
    """Return the key of a request's states."""
    return f"rr:{{{tag}}}:s:{request_id}"


def upload(tag: str, upload_id: str) -> str:
    """Return the key of what an upload has staged."""
    return f"rr:{{{tag}}}:u:{upload_id}"


def record(key: RecordKey) -> str:
    """Return the key of a sealed record."""
    return f"rr:{{{key.tag}}}:m:{key.request_id}:{key.choice}"


def blob(tag: str, upload_id: str, what: str, digest: bytes, split: str, part: int) -> str:
    """Return the key of one value.

    The digest and how it was split and laid out are part of it, so two different values can never
    meet under one key, and a retry can never damage what is sealed.
    """
    return f"rr:{{{tag}}}:b:{upload_id}:{what}:{digest.hex()}.{split}:{part}"


def sealed_counts(width_s: int, number: int) -> str:
    """Return the key of what was sealed in slice `number` of `width_s` seconds each."""
    return f"{JOURNAL}:{width_s}:{number}"
