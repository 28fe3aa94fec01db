"""Rows that are packed or sorted: the bits that the wire page promises, and the same ids back."""

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routereplay.wire.bits import _BLOCK
from routereplay.wire.codec import (
    cell_nbytes,
    dtype_of,
    id_bits,
    is_shorter,
    read_rows,
    write_rows,
)
from routereplay.wire.errors import InvalidRoutes
from routereplay.wire.sorting import layout_of


def models(dtype):
    """`(experts, topk)` of which rows are shorter in this dtype."""
    return st.tuples(st.integers(2, 32768), st.integers(1, 20)).filter(
        lambda model: is_shorter(dtype, model[1], model[0])
    )


written = st.sampled_from(["bitpack", "sorted"]).flatmap(
    lambda dtype: st.tuples(st.just(dtype), models(dtype))
)


def drawn(tokens, layers, experts, topk, seed=0):
    ids = np.random.default_rng(seed).integers(0, experts, (tokens, layers, topk))
    return ids.astype("u1" if experts <= 256 else "<u2")


def as_read(rows, dtype):
    """What comes back of rows."""
    return np.sort(rows, axis=2) if dtype == "sorted" else rows


def packed_cell(ids, bits):
    """A cell as one number, written without numpy."""
    number = sum(int(expert) << at * bits for at, expert in enumerate(ids))
    return number.to_bytes(-(-len(ids) * bits // 8), "little")


def sorted_cell(ids, experts):
    """A cell as the wire page says, written without numpy."""
    layout = layout_of(len(ids), experts)
    ids = sorted(int(expert) for expert in ids)
    index = sum(comb((e >> layout.low_bits) + at, at + 1) for at, e in enumerate(ids))
    low = [expert % (1 << layout.low_bits) for expert in ids]
    return index.to_bytes(layout.index_dtype.itemsize, "little") + packed_cell(low, layout.low_bits)


@settings(deadline=None, max_examples=150)
@given(models("bitpack"), st.integers(0, 5), st.integers(1, 4))
def test_a_packed_cell_is_its_ids_as_bits_of_one_number(model, tokens, layers):
    experts, topk = model
    rows = drawn(tokens, layers, experts, topk)
    packed = write_rows(rows, "bitpack", experts)

    assert packed.shape == (tokens, layers, cell_nbytes("bitpack", topk, experts))
    expected = [packed_cell(cell, id_bits(experts)) for cell in rows.reshape(tokens * layers, topk)]
    assert packed.tobytes() == b"".join(expected)


@settings(deadline=None, max_examples=150)
@given(models("sorted"), st.integers(0, 5), st.integers(1, 4))
def test_a_sorted_cell_is_an_index_and_the_low_bits_of_its_ids(model, tokens, layers):
    experts, topk = model
    rows = drawn(tokens, layers, experts, topk)
    found = write_rows(rows, "sorted", experts)

    assert found.shape == (tokens, layers, cell_nbytes("sorted", topk, experts))
    expected = [sorted_cell(cell, experts) for cell in rows.reshape(tokens * layers, topk)]
    assert found.tobytes() == b"".join(expected)


@settings(deadline=None, max_examples=200)
@given(written, st.integers(0, 9), st.integers(1, 6), st.data())
def test_a_slice_of_written_rows_is_that_slice_of_the_ids(way, tokens, layers, data):
    dtype, (experts, topk) = way
    rows = drawn(tokens, layers, experts, topk)
    first = data.draw(st.integers(0, layers - 1))
    last = data.draw(st.integers(first + 1, layers))
    start = data.draw(st.integers(0, tokens))
    cut = np.ascontiguousarray(write_rows(rows, dtype, experts)[start:, first:last])
    back = read_rows(cut.tobytes(), dtype, last - first, topk, experts)

    assert back.dtype == rows.dtype
    assert np.array_equal(back, as_read(rows, dtype)[start:, first:last])


@pytest.mark.parametrize("dtype", ["bitpack", "sorted"])
def test_rows_longer_than_a_block_come_back(dtype):
    for experts, topk in ((64, 8), (384, 8), (512, 10)):
        rows = drawn(2 * _BLOCK // (7 * topk) + 3, 7, experts, topk)
        back = read_rows(write_rows(rows, dtype, experts).data.cast("B"), dtype, 7, topk, experts)

        assert np.array_equal(back, as_read(rows, dtype))


def test_every_choice_of_high_parts_has_an_index_of_its_own():
    experts, topk = 32, 4
    every = itertools.combinations_with_replacement(range(experts), topk)
    rows = np.array(list(every), np.uint8)[:, None]
    cells = write_rows(rows, "sorted", experts)

    assert len(np.unique(cells.reshape(len(rows), -1), axis=0)) == len(rows)
    assert np.array_equal(read_rows(cells.data.cast("B"), "sorted", 1, topk, experts), rows)


def test_a_dense_layer_comes_back_as_zeros():
    rows = np.zeros((4, 3, 8), np.uint8)

    assert not read_rows(write_rows(rows, "sorted", 128).tobytes(), "sorted", 3, 8, 128).any()


def test_an_index_that_no_choice_has_is_refused():
    layout = layout_of(8, 128)
    cells = write_rows(drawn(3, 2, 128, 8), "sorted", 128)
    cells[2, 1, 0] = layout.ways

    with pytest.raises(InvalidRoutes, match=f"index {layout.ways}; there are {layout.ways}"):
        read_rows(cells.tobytes(), "sorted", 2, 8, 128)


@pytest.mark.parametrize("dtype", ["bitpack", "sorted"])
def test_the_rows_that_are_written_are_not_changed(dtype):
    rows = drawn(4, 2, 384, 8)
    before = rows.copy()
    rows.flags.writeable = False
    write_rows(rows, dtype, 384)

    assert np.array_equal(rows, before)


@pytest.mark.parametrize(
    ("topk", "experts", "bitpack", "sorted_"),
    [
        (8, 128, "bitpack", "sorted"),
        (8, 384, "bitpack", "sorted"),
        (10, 512, "bitpack", "sorted"),
        (4, 128, "uint8", "sorted"),
        (8, 256, "uint8", "sorted"),
        (2, 32768, "uint16", "uint16"),
        (2, 8, "bitpack", "bitpack"),
        (1, 128, "uint8", "uint8"),
        (1, 1000, "uint16", "uint16"),
    ],
)
def test_a_codec_is_for_models_whose_cells_it_makes_shorter(topk, experts, bitpack, sorted_):
    assert dtype_of("bitpack", topk, experts) == bitpack
    assert dtype_of("sorted", topk, experts) == sorted_
    assert dtype_of("raw", topk, experts) == ("uint8" if experts <= 256 else "uint16")


@pytest.mark.parametrize("model", [(2**40, 2**60), (257, 2), (1, 2**16 + 1), (256, 65536), (0, 0)])
def test_a_model_that_no_store_takes_costs_nothing(model):
    topk, experts = model

    assert is_shorter("sorted", topk, experts) in {True, False}
