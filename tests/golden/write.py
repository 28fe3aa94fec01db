"""Writes the golden files that are missing: see README.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from support.frames import delta_on, make_upload  # noqa: E402

from routereplay.sidecar.app import create_app  # noqa: E402
from routereplay.sidecar.settings import Settings  # noqa: E402
from routereplay.wire import Routes, RoutesItem, digest, frame_bytes  # noqa: E402
from routereplay.wire.frame import padding  # noqa: E402
from routereplay.wire.version import WIRE_VERSION  # noqa: E402


def frames() -> dict[str, bytes]:
    """Every kind of frame, with every field that means something set."""
    first = make_upload(
        "golden-0",
        seed=1,
        trajectory_id="golden",
        aliases=("golden-alias",),
        engine_id="engine",
        ordinal=0,
        num_experts=300,
    )
    second = delta_on(first, 20, engine_id="engine", ordinal=1, num_experts=300)
    return {
        "chunks": b"".join(first.chunk_frames),
        "seal": first.seal_frame,
        "delta": second.body,
        "drop": first.drop_frame("store_unreachable"),
        "routes": _routes(first),
        "packed": make_upload("golden-9", seed=3, topk=8, num_experts=384, codec="bitpack").body,
        "sorted": make_upload("golden-8", seed=4, topk=8, num_experts=160, codec="sorted").body,
    }


def operations() -> dict[str, list[str]]:
    """Each operation of the store with its query parameters."""
    described = create_app(Settings()).openapi()["paths"]
    return {
        f"{method.upper()} {path}": sorted(p["name"] for p in operation.get("parameters", ()))
        for path, found in described.items()
        for method, operation in found.items()
    }


def _routes(upload) -> bytes:
    rows, tokens = upload.experts.tobytes(), np.asarray(upload.token_ids, "<i4").tobytes()
    gap = padding(len(rows))
    item = RoutesItem(
        manifest=upload.manifest,
        token_start=0,
        rows=len(upload.experts),
        layer_start=0,
        layers=upload.manifest.num_layers,
        rows_offset=0,
        rows_nbytes=len(rows),
        rows_digest=digest(rows),
        tokens_offset=len(rows) + len(gap),
        tokens_nbytes=len(tokens),
    )
    return frame_bytes(Routes(items=(item,)), [rows, gap, tokens, padding(len(tokens))])


def main() -> None:
    folder = FOLDER / f"wire-{WIRE_VERSION}"
    folder.mkdir(exist_ok=True)
    wanted = {folder / f"{name}.bin": data for name, data in frames().items()}
    wanted[FOLDER / "http-v1.json"] = (json.dumps(operations(), indent=1) + "\n").encode()
    for path, data in wanted.items():
        if not path.exists():
            path.write_bytes(data)


if __name__ == "__main__":
    main()
