"""What a stock vLLM server does with routes: `.npy`, base64, JSON, in the response.

The encoding is vLLM 0.30's `vllm.utils.serial_utils.numpy2base64`, and the answer is a
`JSONResponse` as in its entrypoints. `GET /generate?rows=N` answers with N rows.
"""

from __future__ import annotations

import io
import sys

import numpy as np
import pybase64
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from route_store.data import routes

app = FastAPI()
_rows = routes(150_000)


def numpy2base64(array: np.ndarray) -> str:
    """As vLLM's own."""
    with io.BytesIO() as buffer:
        np.save(buffer, array, allow_pickle=False)
        return pybase64.b64encode(buffer.getbuffer()).decode("ascii")


@app.get("/generate")
async def generate(rows: int) -> JSONResponse:
    """Answer one completion of one token."""
    choice = {"index": 0, "text": "a", "routed_experts": numpy2base64(_rows[:rows])}
    return JSONResponse({"id": "cmpl-1", "object": "text_completion", "choices": [choice]})


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
