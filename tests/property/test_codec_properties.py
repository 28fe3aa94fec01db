"""Packed ids: the bits that the wire page promises, and the same ids back, whole or in slices."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from routereplay.wire.codec import _BLOCK_IDS, bitpack, cell_nbytes, id_bits, packs, read_rows

models = st.tuples(st.integers(1, 32768), st.integers(1, 20)).filter(
    lambda model: packs(model[1], model[0])
)


def drawn(tokens, layers, experts, topk, seed=0):
    ids = np.random.default_rng(seed).integers(0, experts, (tokens, layers, topk))
    return ids.astype("u1" if experts <= 256 else "<u2")


def cell_of(ids, bits):
    """A cell as one number, written without numpy."""
    number = sum(int(expert) << at * bits for at, expert in enumerate(ids))
    return number.to_bytes(-(-len(ids) * bits // 8), "little")


@settings(deadline=None, max_examples=150)
@given(models, st.integers(0, 5), st.integers(1, 4))
def test_a_cell_is_its_ids_as_bits_of_one_number(model, tokens, layers):
    experts, topk = model
    rows = drawn(tokens, layers, experts, topk)
    packed = bitpack(rows, experts)

    assert packed.shape == (tokens, layers, cell_nbytes("bitpack", topk, experts))
    expected = [cell_of(cell, id_bits(experts)) for cell in rows.reshape(tokens * layers, topk)]
    assert packed.tobytes() == b"".join(expected)


@settings(deadline=None, max_examples=150)
@given(models, st.integers(0, 9), st.integers(1, 6), st.data())
def test_a_slice_of_packed_rows_is_that_slice_of_the_ids(model, tokens, layers, data):
    experts, topk = model
    rows = drawn(tokens, layers, experts, topk)
    first = data.draw(st.integers(0, layers - 1))
    last = data.draw(st.integers(first + 1, layers))
    start = data.draw(st.integers(0, tokens))
    cut = np.ascontiguousarray(bitpack(rows, experts)[start:, first:last])
    back = read_rows(cut.tobytes(), "bitpack", last - first, topk, experts)

    assert back.dtype == rows.dtype
    assert np.array_equal(back, rows[start:, first:last])


def test_rows_longer_than_a_block_come_back():
    for experts, topk in ((128, 8), (384, 8), (512, 10)):
        rows = drawn(2 * _BLOCK_IDS // (7 * topk) + 3, 7, experts, topk)
        back = read_rows(bitpack(rows, experts).data.cast("B"), "bitpack", 7, topk, experts)

        assert np.array_equal(back, rows)


def test_the_rows_that_are_packed_are_not_written_to():
    rows = drawn(4, 2, 384, 8)
    before = rows.copy()
    rows.flags.writeable = False
    bitpack(rows, 384)

    assert np.array_equal(rows, before)


def test_packing_is_for_models_whose_cells_it_makes_shorter():
    assert packs(8, 128)
    assert packs(8, 384)
    assert not packs(4, 128)
    assert not packs(8, 256)
    assert not packs(8, 65536)
