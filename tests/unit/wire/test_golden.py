"""What earlier releases wrote is read, and what they read is still written."""

import json
from pathlib import Path

import msgpack
import msgspec
import pytest

from routereplay.client._decode import decode_routes
from routereplay.sidecar.app import create_app
from routereplay.sidecar.settings import Settings
from routereplay.wire import iter_frames
from routereplay.wire.frame import PREFIX_BYTES, encode_head, read_prefix
from routereplay.wire.version import WIRE_VERSION

GOLDEN = Path(__file__).parents[2] / "golden"
FILES = sorted(GOLDEN.glob(f"wire-{WIRE_VERSION}/*.bin"))


def header_map(frame):
    """The header of a frame's bytes as a plain reader of MessagePack sees it."""
    sizes = read_prefix(frame)
    return msgpack.unpackb(bytes(frame[PREFIX_BYTES : PREFIX_BYTES + sizes.header]))


def split(body):
    """The bytes of each frame of a body."""
    view, frames = memoryview(body), []
    while view:
        total = read_prefix(view).total
        frames.append(view[:total])
        view = view[total:]
    return frames


def holds(new, old):
    """Whether `new` says everything that `old` says, and perhaps more."""
    if isinstance(old, dict):
        return all(key in new and holds(new[key], value) for key, value in old.items())
    if isinstance(old, list):
        return len(new) == len(old) and all(map(holds, new, old))
    return type(new) is type(old) and new == old


def test_every_kind_of_frame_is_kept():
    kinds = {header_map(frame)["kind"] for path in FILES for frame in split(path.read_bytes())}

    assert kinds == {"chunk", "seal", "drop", "routes"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_was_written_means_the_same_and_is_written_again(path):
    body = path.read_bytes()

    for frame, raw in zip(iter_frames(body), split(body), strict=True):
        old = header_map(raw)
        assert holds(msgspec.to_builtins(frame.header, builtin_types=(bytes,)), old)
        again = encode_head(frame.header, frame.payload.nbytes)
        # An earlier release finds every field that it knows; more it does not look at.
        assert holds(header_map(again), old)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_field_that_a_later_release_adds_is_not_looked_at(path):
    for frame, raw in zip(iter_frames(path.read_bytes()), split(path.read_bytes()), strict=True):
        later = msgpack.packb(header_map(raw) | {"of_a_later_release": [1, {"deep": b"x"}]})

        assert msgspec.msgpack.decode(later, type=type(frame.header)) == frame.header


def test_the_rows_of_an_answer_are_read():
    header, (routes,) = decode_routes((GOLDEN / f"wire-{WIRE_VERSION}" / "routes.bin").read_bytes())

    assert routes.experts.shape == (32, 4, 2)
    assert (routes.manifest.request_id, routes.manifest.num_experts) == ("golden-0", 300)
    assert header.failures == ()


def test_no_operation_or_parameter_of_v1_has_gone():
    described = create_app(Settings()).openapi()["paths"]
    now = {
        f"{method.upper()} {path}": {p["name"] for p in operation.get("parameters", ())}
        for path, found in described.items()
        for method, operation in found.items()
    }

    for operation, parameters in json.loads((GOLDEN / "http-v1.json").read_text()).items():
        assert set(parameters) <= now[operation]
