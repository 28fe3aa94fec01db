"""The store that one writes in an afternoon: FastAPI, `await request.body()`, redis-py."""

from __future__ import annotations

import sys

import redis.asyncio
import uvicorn
from fastapi import FastAPI, Request, Response

app = FastAPI()
_redis = redis.asyncio.Redis(unix_socket_path=sys.argv[2])


@app.put("/{name}")
async def put(name: str, request: Request) -> Response:
    """Keep a body."""
    await _redis.set(name, await request.body(), ex=600)
    return Response(status_code=204)


@app.get("/{name}")
async def get(name: str) -> Response:
    """Return it."""
    return Response(await _redis.get(name), media_type="application/octet-stream")


@app.delete("/{name}")
async def delete(name: str) -> Response:
    """Forget it."""
    await _redis.delete(name)
    return Response(status_code=204)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
