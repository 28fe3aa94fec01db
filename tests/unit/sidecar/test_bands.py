"""Bands of values are checked by the digest that they were stored with."""

import msgspec
import numpy as np
import pytest

from routereplay.sidecar.store import bands
from routereplay.sidecar.store.bands import Shape
from routereplay.sidecar.store.base import Layout
from routereplay.wire.digest import digest

SHAPE = Shape(rows=50, layers=12, cell=4, bands=3)


def _value():
    rows = np.random.default_rng(0).integers(0, 256, SHAPE[:3], dtype=np.uint8)
    value = memoryview(bytearray(SHAPE.nbytes))
    return value, bands.split(rows.data.cast("B"), SHAPE, value)


def _held(value):
    for band in bands.bands(SHAPE, 0, SHAPE.layers):
        stop = band.offset + SHAPE.rows * (band.stop - band.start) * SHAPE.cell
        yield band, value[band.offset : stop]


def test_a_record_of_before_there_was_a_choice_is_still_checked_by_blake3():
    value, _ = _value()
    noted = [SHAPE.rows, SHAPE.bands, b"".join(digest(held) for _, held in _held(value))]
    layout = msgspec.msgpack.decode(msgspec.msgpack.encode(noted), type=Layout)

    assert all(bands.is_intact(held, layout, SHAPE, 0, band) for band, held in _held(value))
    value[-1] ^= 1
    found = [bands.is_intact(held, layout, SHAPE, 0, band) for band, held in _held(value)]
    assert found == [True, True, False]


@pytest.mark.parametrize("damage", ["a bit", "two bytes that change places"])
def test_damage_of_one_band_is_seen_in_it_alone(damage):
    value, digests = _value()
    layout = Layout(SHAPE.rows, SHAPE.bands, digests, "xxh3")
    at = SHAPE.nbytes // 2
    if damage == "a bit":
        value[at] ^= 16
    else:
        value[at : at + 2] = bytes([value[at] ^ 1, value[at]])

    found = [bands.is_intact(held, layout, SHAPE, 0, band) for band, held in _held(value)]
    assert found == [True, False, True]
