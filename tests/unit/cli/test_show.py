"""Heat maps and loads against what they are made of."""

import numpy as np
import pytest
from PIL import Image
from support.frames import make_upload

from routereplay.cli import show
from routereplay.cli.heatmap import write_heat_map
from routereplay.wire.load import expert_counts, layer_loads, without_dense
from routereplay.wire.routes import RoutedExperts


def routes(**fields):
    upload = make_upload("shown", **fields)
    return RoutedExperts(upload.experts, upload.manifest, upload.token_ids)


def test_counts_are_those_of_a_plain_loop():
    turn = routes(num_experts=300, num_layers=3, topk=2)

    expected = np.zeros((3, 300), int)
    for row in turn.experts.tolist():
        for layer, experts in enumerate(row):
            for expert in experts:
                expected[layer, expert] += 1
    assert np.array_equal(expert_counts(turn.experts, 300), expected)


def test_a_dense_layer_counts_zero_and_a_collapsed_one_is_seen():
    rows = np.zeros((10, 3, 2), np.uint8)
    rows[:, 1] = [4, 5]
    rows[:, 2] = np.arange(20).reshape(10, 2) % 8

    loads = layer_loads(without_dense(expert_counts(rows, 8)))

    assert loads[0].used == 0
    assert (loads[1].used, loads[1].max_over_mean) == (2, 4.0)
    assert loads[2].used == 8
    assert loads[2].entropy > 0.9 > loads[1].entropy


def test_no_rows_have_no_load():
    counts = without_dense(expert_counts(np.zeros((0, 2, 2), np.uint8), 4))

    assert counts.shape == (2, 4)
    assert [load.used for load in layer_loads(counts)] == [0, 0]


def test_a_heat_map_shows_each_count_at_its_place(tmp_path):
    counts = np.array([[0, 3, 1], [4, 0, 0]])

    write_heat_map(tmp_path / "map.png", [counts, counts[:1]])

    with Image.open(tmp_path / "map.png") as image:
        pixels = np.asarray(image.convert("L")).astype(int)
    cell = 16
    assert pixels.shape == (3 * cell + 6, 3 * cell)
    centres = pixels[cell // 2 : 2 * cell : cell, cell // 2 :: cell]
    assert centres[1, 0] > centres[0, 1] > centres[0, 2] > centres[0, 0] == centres[1, 1]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_saved_arrays_are_the_routes(suffix, tmp_path):
    turns = [routes(seed=1), routes(seed=2, num_experts=300)]
    path = tmp_path / f"routes{suffix}"

    show.save(path, turns)

    if suffix == ".npz":
        arrays = np.load(path)
    else:
        from safetensors.numpy import load_file

        arrays = load_file(path)
    for index, turn in enumerate(turns):
        assert np.array_equal(arrays[f"experts_{index}"], turn.experts)
        assert np.array_equal(arrays[f"token_ids_{index}"], turn.token_ids)
        assert arrays[f"experts_{index}"].dtype == turn.experts.dtype
