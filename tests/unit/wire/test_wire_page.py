"""docs/wire.md: its dumps are read without our code, and are what our code writes."""

import re
import struct
import zlib
from pathlib import Path

import blake3
import msgpack
import numpy as np
import pytest

from routereplay.wire import Chunk, ChunkRef, RecordManifest, Seal, digest, frame_bytes

PAGE = (Path(__file__).parents[3] / "docs/wire.md").read_text()
LINE = re.compile(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} )*[0-9a-f]{2})(?: {2,}(\S.*))?")
ROWS = np.array([[[3, 1], [0, 2]], [[2, 0], [1, 3]]], np.uint8)
TOKENS = np.array([11, 12, 21], np.int32)
SHAPE = {"num_layers": 2, "topk": 2, "num_experts": 4, "dtype": "uint8"}


def lines(kind):
    """(bytes, what the page says of them) of a dump; the offsets must follow each other."""
    (dump,) = re.findall(rf"^```text hexdump {kind}\n(.*?)^```", PAGE, re.M | re.S)
    found = []
    at = 0
    for line in dump.splitlines():
        offset, text, said = LINE.fullmatch(line).groups()
        assert int(offset, 16) == at, line
        data = bytes.fromhex(text)
        at += len(data)
        if said is None:
            found[-1] = (found[-1][0] + data, found[-1][1])
        else:
            found.append((data, said))
    return found


def parse(kind):
    """The header, the payload, and the lines of the header of a dump; all else is checked."""
    rest = lines(kind)
    frame = b"".join(data for data, _ in rest)
    magic, version, z1, header, crc, payload, z2 = struct.unpack_from("<4sB3sIIQ8s", frame)
    assert (magic, version, z1, z2) == (b"RRF\n", 1, bytes(3), bytes(8))
    start = -(-(32 + header) // 64) * 64
    assert len(frame) == -(-(start + payload) // 64) * 64
    assert not any(frame[32 + header : start])
    assert not any(frame[start + payload :])
    encoded = frame[32 : 32 + header]
    assert zlib.crc32(encoded) == crc
    said = dict(enumerate(said for _, said in rest[:7]))
    assert said[3] == f"header length, {header}"
    assert said[5] == f"payload length, {payload}"
    held, own = 0, []
    for data, meaning in rest[7:]:
        if held < header:
            own.append((data, meaning))
            held += len(data)
    assert held == header
    return msgpack.unpackb(encoded), frame[start : start + payload], own


@pytest.mark.parametrize("kind", ["chunk", "seal"])
def test_every_line_of_a_header_says_what_its_bytes_are(kind):
    _, _, own = parse(kind)

    for data, said in own:
        if counted := re.fullmatch(r"(map|array) of (\d+)", said):
            fix, long = {"map": (0x80, 0xDE), "array": (0x90, 0xDC)}[counted[1]]
            count = int(counted[2])
            assert data == (bytes([fix + count]) if count < 16 else struct.pack(">BH", long, count))
            continue
        value = msgpack.unpackb(data)
        if said.startswith("key "):
            assert said == f"key {value}"
        elif said.startswith("BLAKE3"):
            assert len(value) == 16
        else:
            assert said == {"''": '""', "None": "nil", "False": "false"}.get(
                repr(value), str(value)
            )


def test_the_chunk_is_read_without_our_code():
    header, payload, _ = parse("chunk")

    rows = np.frombuffer(payload, header["dtype"]).reshape(
        header["rows"], header["num_layers"], header["topk"]
    )
    assert header["kind"] == "chunk"
    assert np.array_equal(rows, ROWS)
    assert header["digest"] == blake3.blake3(payload).digest(16)


def test_the_seal_is_read_without_our_code():
    header, payload, _ = parse("seal")
    manifest = header["manifest"]

    assert header["kind"] == "seal"
    assert np.frombuffer(payload, "<i4").tolist() == [11, 12, 21]
    assert manifest["token_digest"] == blake3.blake3(payload).digest(16)
    assert manifest["chunks"][0]["digest"] == parse("chunk")[0]["digest"]
    assert manifest["rows"] == manifest["prompt_len"] + manifest["completion_len"] - 1


def test_the_dumps_are_what_our_code_writes():
    where = {"upload_id": "0", "request_id": "chatcmpl-a", "choice": 0}
    chunk = Chunk(**where, **SHAPE, seq=0, first_row=0, rows=2, digest=digest(ROWS.data))
    manifest = RecordManifest(
        request_id="chatcmpl-a",
        choice=0,
        **SHAPE,
        prompt_len=2,
        completion_len=1,
        rows=2,
        finish_reason="stop",
        chunks=(ChunkRef(rows=2, nbytes=8, digest=digest(ROWS.data)),),
        token_digest=digest(TOKENS.data),
    )
    written = {
        "chunk": frame_bytes(chunk, [ROWS.data]),
        "seal": frame_bytes(Seal(upload_id="0", manifest=manifest), [TOKENS.data]),
    }

    for kind, frame in written.items():
        assert b"".join(data for data, _ in lines(kind)) == frame, kind
