"""Values in bands: every slice of layers and rows comes back, read from its bands alone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from routereplay.sidecar.store import bands
from routereplay.sidecar.store.bands import Shape
from routereplay.sidecar.store.base import Layout

shapes = st.builds(
    lambda rows, layers, cell, count: Shape(rows, layers, cell, min(count, layers)),
    st.integers(1, 40),
    st.integers(1, 70),
    st.integers(1, 20),
    st.integers(1, 9),
)


def drawn(shape):
    draw = np.random.default_rng(shape.nbytes)
    return draw.integers(0, 256, shape[:3], dtype=np.uint8)


@settings(deadline=None, max_examples=60)
@given(shapes)
def test_what_is_split_joins_to_the_same_rows(shape):
    rows_TLC = drawn(shape)
    value = memoryview(bytearray(shape.nbytes))
    digests = bands.split(rows_TLC.data.cast("B"), shape, value)
    back = np.zeros_like(rows_TLC)
    bands.join(value, shape, back.data.cast("B"))

    assert np.array_equal(back, rows_TLC)
    assert len(digests) == 16 * shape.bands


@settings(deadline=None, max_examples=100)
@given(shapes, st.data())
def test_a_slice_is_found_in_the_bands_of_its_layers(shape, data):
    rows_TLC = drawn(shape)
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, shape.layers)] * 2)))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, shape.rows)] * 2)))
    value = memoryview(bytearray(shape.nbytes))
    layout = Layout(
        shape.rows, shape.bands, bands.split(rows_TLC.data.cast("B"), shape, value), "xxh3"
    )
    out = np.zeros((stop - start, last - first, shape.cell), np.uint8)
    moved = 0
    for band in bands.bands(shape, first, last):
        nbytes = shape.rows * (band.stop - band.start) * shape.cell
        held = value[band.offset : band.offset + nbytes]
        moved += nbytes
        assert bands.is_intact(held, layout, shape, 0, band)
        bands.take(held, band, shape, range(start, stop), range(first, last), out)

    assert np.array_equal(out, rows_TLC[start:stop, first:last])
    # At most one band too many at either end.
    widest = -(-shape.layers // shape.bands)
    assert moved <= shape.rows * shape.cell * (last - first + 2 * widest)


@given(st.integers(0, 1 << 24), st.integers(1, 200))
def test_there_is_a_band_and_never_more_than_layers(nbytes, layers):
    assert 1 <= bands.band_count(nbytes, layers) <= min(layers, bands.MOST_BANDS)
