"""Frames to `RoutedExperts` and `Trajectory`; every digest is checked on the way."""

from __future__ import annotations

import numpy as np

from routereplay.client.trajectory import Trajectory
from routereplay.wire.codec import cell_nbytes, read_rows
from routereplay.wire.digest import Buffer, digest
from routereplay.wire.errors import CorruptRecord, MalformedFrame
from routereplay.wire.frame import decode_frame
from routereplay.wire.records import Routes, RoutesItem
from routereplay.wire.routes import RoutedExperts, check_rows

_MAX_HEADER_BYTES = 64 * 1024 * 1024
_TOKEN_DTYPE = np.dtype("<i4")
_MAX_EXPERTS = 1 << 16
"""An id has two bytes at most."""


def decode_routes(body: Buffer) -> tuple[Routes, list[RoutedExperts]]:
    """Decode a `Routes` frame into its header and one read-only `RoutedExperts` an item.

    Raises:
        WireError: the frame is malformed, or bytes differ from their digest.
    """
    view = memoryview(body).toreadonly()
    header, payload = decode_frame(view, max_header_bytes=_MAX_HEADER_BYTES)
    if not isinstance(header, Routes):
        msg = f"expected a frame of routes, found {type(header).__name__}"
        raise MalformedFrame(msg)
    return header, [_decode_item(item, payload) for item in header.items]


def decode_trajectories(body: Buffer) -> tuple[Routes, list[Trajectory]]:
    """Decode a `Routes` frame into its header and its trajectories."""
    header, items = decode_routes(body)
    for fetched in header.trajectories:
        if fetched.items and not 0 <= min(fetched.items) <= max(fetched.items) < len(items):
            msg = (
                f"trajectory {fetched.trajectory_id}: its turns are items {fetched.items} of "
                f"{len(items)} in the frame"
            )
            raise MalformedFrame(msg)
    return header, [
        Trajectory(
            fetched.trajectory_id,
            tuple(items[index] for index in fetched.items),
            tuple(turn for turn in fetched.turns if turn.state != "sealed"),
        )
        for fetched in header.trajectories
    ]


def _decode_item(item: RoutesItem, payload: memoryview) -> RoutedExperts:
    manifest = item.manifest
    where = f"{manifest.request_id} choice {manifest.choice}"
    if not _adds_up(item):
        msg = (
            f"{where}: rows {item.token_start} + {item.rows} and layers {item.layer_start} + "
            f"{item.layers} with {item.tokens_nbytes} bytes of token ids are no part of a record "
            f"of {manifest.num_tokens} tokens, {manifest.num_layers} layers and {manifest.topk} of "
            f"{manifest.num_experts} experts"
        )
        raise MalformedFrame(msg)
    rows = payload[item.rows_offset : item.rows_offset + item.rows_nbytes]
    cell = cell_nbytes(manifest.dtype, manifest.topk, manifest.num_experts)
    if len(rows) != item.rows_nbytes or len(rows) != item.rows * item.layers * cell:
        shape = (item.rows, item.layers, manifest.topk)
        msg = f"{where}: {len(rows)} bytes of routes; expected {shape} of {manifest.dtype}"
        raise MalformedFrame(msg)
    if not _is_what_was_sent(rows, item):
        msg = f"{where}: the routes that arrived are not those the store sent"
        raise CorruptRecord(msg)
    tokens = payload[item.tokens_offset : item.tokens_offset + item.tokens_nbytes]
    if digest(tokens) != manifest.token_digest:
        msg = f"{where}: the token ids that arrived are not those that were recorded"
        raise CorruptRecord(msg)
    experts = read_rows(rows, manifest.dtype, item.layers, manifest.topk, manifest.num_experts)
    experts.flags.writeable = False
    check_rows(experts, manifest.num_experts, where)
    return RoutedExperts(
        experts,
        manifest,
        np.frombuffer(tokens, _TOKEN_DTYPE),
        item.token_start,
        item.layer_start,
        item.parent,
        item.sources,
    )


def _adds_up(item: RoutesItem) -> bool:
    """Tell whether the sizes of an item can be true, before anything is made of them."""
    manifest = item.manifest
    return (
        0 < manifest.topk <= manifest.num_experts <= _MAX_EXPERTS
        and 0 <= item.layer_start < item.layer_start + item.layers <= manifest.num_layers
        and 0 <= item.token_start <= item.token_start + item.rows <= manifest.num_tokens
        and min(item.rows_offset, item.rows_nbytes, item.tokens_offset) >= 0
        and item.tokens_nbytes == _TOKEN_DTYPE.itemsize * manifest.num_tokens
    )


def _is_what_was_sent(rows: memoryview, item: RoutesItem) -> bool:
    if item.rows_digest:
        return digest(rows) == item.rows_digest
    # All chunks of the record, each with the digest that its recorder gave it.
    at = 0
    for chunk in item.manifest.chunks:
        if digest(rows[at : at + chunk.nbytes]) != chunk.digest:
            return False
        at += chunk.nbytes
    return at == len(rows)
