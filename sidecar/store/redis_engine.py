"""The connection to a Redis or Valkey: limits, the meaning of its errors, its configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from typing import Any

import redis.asyncio
from redis import exceptions as refusals
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from routereplay.sidecar.errors import EngineMisconfigured
from routereplay.wire.errors import StoreFull, StoreUnavailable

logger = logging.getLogger(__name__)

# First word of an engine's error that passes by itself or by an operator's hand.
_PASSING = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "READONLY",
    "TRYAGAIN",
    "UNKILLABLE",
)


def connect(url: str, *, timeout_s: float, connections: int) -> redis.asyncio.Redis:
    """Return a client that connects on first use.

    One retry and short timeouts: redis-py's own ten retries would hold a caller for a
    minute, and every caller here can be told to come back. RESP2, because RESP3 makes
    redis-py send a command on connect that Valkey does not know.
    """
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        protocol=2,
        max_connections=connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 1),
        retry_on_error=[refusals.ConnectionError],
    )
    return redis.asyncio.Redis.from_pool(pool)


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn what the engine says into `StoreUnavailable` or `StoreFull`.

    What is left, such as a wrong type at a key or a missing permission, is a fault of
    ours or of the set-up, and is not dressed up as something that a retry could heal.
    """
    try:
        yield
    except refusals.OutOfMemoryError as error:
        msg = "the engine is at its memory limit; stored routes stay, new ones must wait"
        raise StoreFull(msg) from error
    except (refusals.ConnectionError, refusals.TimeoutError, OSError) as error:
        msg = f"no answer from the engine behind the store: {type(error).__name__}"
        raise StoreUnavailable(msg) from error
    except refusals.ResponseError as error:
        # redis-py has classes for some of these and not for others, by version.
        text = str(error)
        if "OOM" in text.split(maxsplit=1)[:1] or "used memory > 'maxmemory'" in text:
            msg = "the engine is at its memory limit; stored routes stay, new ones must wait"
            raise StoreFull(msg) from error
        passing = isinstance(
            error,
            refusals.ReadOnlyError
            | refusals.ClusterDownError
            | refusals.TryAgainError
            | refusals.AskError,
        )
        if passing or any(word in text for word in _PASSING):
            msg = f"the engine behind the store takes no command now: {text[:200]}"
            raise StoreUnavailable(msg) from error
        raise


def script_text(name: str) -> str:
    """Return the source of `scripts/NAME.lua`."""
    return (resources.files("routereplay.sidecar") / "scripts" / f"{name}.lua").read_text()


async def check_engine(client: redis.asyncio.Redis, *, durability: str) -> None:
    """Raise `EngineMisconfigured` if the engine would lose what it acknowledges.

    Raises:
        EngineMisconfigured: it evicts, it is too old, or it keeps no append-only file that
            has every write before its acknowledgement, as `process` promises.
        StoreUnavailable: it does not answer.
    """
    with engine_errors():
        version = (await client.info("server"))["redis_version"]
        try:
            config: Mapping[Any, Any] = await client.config_get(
                "maxmemory-policy", "appendonly", "appendfsync"
            )
        except refusals.ResponseError as error:
            logger.warning("the engine hides its configuration (%s): not checked", error)
            config = {}
    if int(str(version).split(".")[0]) < 7:
        msg = f"the engine is Redis {version}; 7.0 or newer (or Valkey) is needed"
        raise EngineMisconfigured(msg)
    policy = config.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        msg = (
            f"the engine's maxmemory-policy is {policy}: it would delete acknowledged routes "
            "to make room. Set it to noeviction; a full store then answers 503."
        )
        raise EngineMisconfigured(msg)
    if durability == "process":
        _check_append_only(config)


def _check_append_only(config: Mapping[Any, Any]) -> None:
    if config.get("appendonly", "yes") != "yes":
        found = "has no append-only file"
    elif config.get("appendfsync", "no") == "everysec":
        # With `no` and `always` the write is done before the acknowledgement; everysec puts
        # it off while an fsync is slow. docs/decisions/0005 has the measurement.
        found = "acknowledges with appendfsync everysec before it has written"
    else:
        return
    msg = (
        f"durability `process` promises that records survive a killed engine, and the engine "
        f"{found}. Set `appendonly yes` and `appendfsync no` (or `always`) there, or "
        "ROUTEREPLAY_DURABILITY=memory here."
    )
    raise EngineMisconfigured(msg)
