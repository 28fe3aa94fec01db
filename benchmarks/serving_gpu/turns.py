"""Whose turn it is on a card that only one server fits: the others sleep, as vLLM's sleep mode."""

from __future__ import annotations

import time
from collections.abc import Iterable

import aiohttp

from serving_gpu.servers import Server

PATIENCE_S = 120.0
"""The first sleep pins as much host memory as there are weights."""


async def take(server: Server, servers: Iterable[Server]) -> None:
    """Give the card to a server: let the one that has it sleep, and wake this one."""
    for other in servers:
        if other is not server and not other.is_asleep and server.is_asleep:
            await sleep(other)
    if server.is_asleep:
        await _ask(server, "wake_up")
        server.is_asleep = False


async def sleep(server: Server) -> None:
    """Let a server leave the card; its weights stay in host memory, its cache is lost."""
    await _ask(server, "sleep?level=1")
    server.is_asleep = True


async def _ask(server: Server, what: str) -> None:
    began = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.post(f"{server.url}/{what}") as response,
    ):
        response.raise_for_status()
    print(f"{server.name}: {what} took {time.monotonic() - began:.1f} s", flush=True)
