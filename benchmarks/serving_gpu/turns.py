"""Whose turn it is on a card that only one server fits: the others sleep, as vLLM's sleep mode.

At level 2, which keeps no weights: they are placeholders, and drawn again in a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import aiohttp

from serving_gpu.servers import Server

PATIENCE_S = 60.0

ARGUMENTS = ["--enable-sleep-mode", "--worker-extension-cls", "serving_gpu.worker.Redraw"]
"""What a server needs to take turns."""


async def take(server: Server, servers: Iterable[Server]) -> None:
    """Give the card to a server: let the one that has it sleep, and wake this one."""
    if not server.is_asleep:
        return
    for other in servers:
        if not other.is_asleep:
            await sleep(other)
    await _ask(server, "wake_up")
    await _ask(server, "collective_rpc", {"method": "redraw_weights"})
    server.is_asleep = False


async def sleep(server: Server) -> None:
    """Let a server leave the card."""
    await _ask(server, "sleep?level=2")
    server.is_asleep = True


async def _ask(server: Server, what: str, body: dict[str, str] | None = None) -> None:
    began = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.post(f"{server.url}/{what}", json=body) as response,
    ):
        response.raise_for_status()
    print(f"{server.name}: {what} took {time.monotonic() - began:.1f} s", flush=True)
