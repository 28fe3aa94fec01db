"""Saving and opening is the identity; a part of a bundle is that part of the arrays."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bundles import random_batch

from routereplay.client import ModelShape, ReplayBundle
from routereplay.client._bundle_saving import write_bundle

SHAPES = st.builds(
    lambda layers, topk, more: ModelShape(layers, topk, topk + more),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 300),
)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.lists(st.integers(0, 40), min_size=1, max_size=3), st.data())
def test_parts_of_a_bundle_are_parts_of_the_arrays(shape, rows_of_batches, data):
    block_rows = data.draw(st.integers(1, 50), label="block_rows")
    batches = [random_batch(rows, shape, seed) for seed, rows in enumerate(rows_of_batches)]
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(Path(folder) / "b", batches, shape, block_rows)
        bundle = ReplayBundle.open(
            Path(folder) / "b", model=shape, token_ids=[batch.token_ids for batch in batches]
        )
        for index, batch in enumerate(batches):
            total = rows_of_batches[index]
            first = data.draw(st.integers(0, shape.num_layers - 1), label="first layer")
            stop = data.draw(st.integers(first + 1, shape.num_layers), label="layer stop")
            rows = data.draw(st.slices(total).filter(lambda s: s.step in (None, 1)), label="rows")
            ids = data.draw(
                st.lists(st.integers(0, total - 1), max_size=9) if total else st.just([]),
                label="row ids",
            )
            for part in (rows, np.array(ids, np.int64)):
                packed = bundle.packed(index, layers=range(first, stop), rows=part)
                expected = batch.packed.experts[part][:, first:stop]
                assert packed.experts.shape == expected.shape
                assert packed.experts.dtype == expected.dtype
                assert np.array_equal(packed.experts, expected)
                assert np.array_equal(packed.live, batch.packed.live[part])
                assert np.array_equal(packed.padding, batch.packed.padding[part])
            assert np.array_equal(bundle.packed(index).experts, batch.packed.experts)
