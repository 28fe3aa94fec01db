"""Whether an engine keeps what it acknowledges, in the class that was promised."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import redis.asyncio
from redis import exceptions as refusals

from routereplay.sidecar.errors import EngineMisconfigured
from routereplay.sidecar.store.redis_engine import engine_errors, primaries
from routereplay.wire.errors import StoreUnavailable

logger = logging.getLogger(__name__)

_CONFIG = (
    "maxmemory-policy",
    "appendonly",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "min-replicas-to-write",
)
_OLDEST = 7


async def check_engine(client: redis.asyncio.Redis, *, durability: str) -> None:
    """Look at every node that takes writes.

    Raises:
        EngineMisconfigured: it evicts, is too old, or is not set up for the class.
        StoreUnavailable: it does not answer, cannot write now, or lacks its replica.
    """
    for ask in await primaries(client):
        with engine_errors():
            info = await ask("INFO")
            try:
                config = await ask("CONFIG GET", *_CONFIG)
            except refusals.ResponseError as error:
                # A provider that hides it keeps it right, or not: nobody else can tell.
                logger.warning("the engine hides its configuration (%s): not checked", error)
                config = {}
        _check_configuration(info, config, durability)
        _check_state(info, durability)


def _check_configuration(
    info: Mapping[str, Any], config: Mapping[Any, Any], durability: str
) -> None:
    version = str(info["redis_version"])
    if int(version.split(".")[0]) < _OLDEST:
        msg = f"the engine is Redis {version}; {_OLDEST}.0 or newer (or Valkey) is needed"
        raise EngineMisconfigured(msg)
    policy = config.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        msg = (
            f"the engine's maxmemory-policy is {policy}: it would delete acknowledged routes "
            "to make room. Set it to noeviction; a full store then answers 503."
        )
        raise EngineMisconfigured(msg)
    if durability != "memory":
        _check_append_only(config, durability)
    if durability == "replica" and int(config.get("min-replicas-to-write", 1)) < 1:
        msg = (
            "durability `replica` promises that records survive the loss of a node, and the "
            "engine takes writes without a replica. Set `min-replicas-to-write 1` there."
        )
        raise EngineMisconfigured(msg)


def _check_append_only(config: Mapping[Any, Any], durability: str) -> None:
    fsync = config.get("appendfsync", "always")
    survives, wanted = "a killed engine", "`appendonly yes` and `appendfsync no` (or `always`)"
    if config.get("appendonly", "yes") != "yes":
        found = "has no append-only file"
    elif fsync == "everysec":
        # With `no` and `always` the write is done before the acknowledgement; everysec puts
        # it off while an fsync is slow. docs/decisions/0005 has the measurement.
        found = "acknowledges with appendfsync everysec before it has written"
    elif durability == "disk" and fsync != "always":
        found = f"acknowledges with appendfsync {fsync} before the disk has it"
    elif durability == "disk" and config.get("no-appendfsync-on-rewrite", "no") != "no":
        found = "does not sync while it rewrites its append-only file (no-appendfsync-on-rewrite)"
    else:
        return
    if durability == "disk":
        survives = "a loss of power"
        wanted = "`appendonly yes`, `appendfsync always` and `no-appendfsync-on-rewrite no`"
    msg = (
        f"durability `{durability}` promises that records survive {survives}, and the engine "
        f"{found}. Set {wanted} there, or another ROUTEREPLAY_DURABILITY here."
    )
    raise EngineMisconfigured(msg)


def _check_state(info: Mapping[str, Any], durability: str) -> None:
    """Raise `StoreUnavailable` for what passes by itself or by an operator's hand."""
    problem = ""
    if info.get("loading"):
        problem = "is loading its data"
    elif info.get("role") == "slave":
        problem = "is a replica and takes no writes"
    elif durability != "memory" and info.get("aof_last_write_status", "ok") != "ok":
        problem = "cannot write its append-only file: is its disk full?"
    elif durability == "replica" and not info.get("connected_slaves"):
        problem = "has no replica connected"
    if problem:
        msg = f"the engine behind the store {problem}"
        raise StoreUnavailable(msg)
