"""A topology is one word, and says how many ranks it needs."""

import pytest

from routereplay.parity.topology import Topology


@pytest.mark.parametrize(
    ("text", "sizes", "world", "data"),
    [
        ("1", (1, 1, 1), 1, 1),
        ("tp2", (2, 1, 1), 2, 1),
        ("ep2", (1, 1, 2), 2, 2),
        ("pp2", (1, 2, 1), 2, 1),
        ("tp2-ep2", (2, 1, 2), 2, 1),
        ("PP2-tp2-ep4", (2, 2, 4), 8, 2),
        ("tp2-ep3", (2, 1, 3), 6, 3),
    ],
)
def test_a_word_gives_sizes_and_ranks(text, sizes, world, data):
    topology = Topology.parse(text)
    assert (topology.tp, topology.pp, topology.ep) == sizes
    assert (topology.world_size, topology.data_parallel) == (world, data)
    assert Topology.parse(str(topology)) == topology


@pytest.mark.parametrize("text", ["", "tp", "tp0", "cp2", "tp2-tp4", "tp2,ep2", "2"])
def test_another_word_is_refused_by_name(text):
    with pytest.raises(ValueError, match="is not one of tpN, ppN, epN"):
        Topology.parse(text)
