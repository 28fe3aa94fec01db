"""File descriptors: as many connections as the process may really have."""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)

_OURS = 32
"""Listening sockets, the engine's files, the event loop, logs."""


def connections_that_fit(wanted: int, engine_connections: int) -> int:
    """Raise the soft limit of descriptors as far as needed; return how many clients fit.

    Accepting one more would take a descriptor from the connections to the engine, and
    every request of every client would fail instead of one connection.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + engine_connections + _OURS
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft >= needed:
        return wanted
    fitting = max(soft - engine_connections - _OURS, soft // 4)
    logger.warning(
        "%d connections need %d file descriptors and the process may open %d: %d are taken. "
        "Raise `ulimit -n`.",
        wanted,
        needed,
        soft,
        fitting,
    )
    return fitting
