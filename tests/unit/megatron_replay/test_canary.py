"""Which routers the canary looks at, and how it deals rows: each arrangement by its definition."""

import pytest
import torch

from routereplay.patches.replay.arrangements import Arranger
from routereplay.patches.replay.canary import canaries
from routereplay.patches.replay.microbatch import Microbatch
from routereplay.patches.replay.origins import RouteOrigins

LAYERS, TOPK = 3, 2


def microbatch(outer, inner, *, batch_first, live=(), padding=()):
    rows = outer * inner
    flags = torch.zeros(2, rows, dtype=torch.bool)
    flags[0, list(live)] = True
    flags[1, list(padding)] = True
    return Microbatch(
        ids_LTK=torch.arange(LAYERS * rows * TOPK, dtype=torch.int16).view(LAYERS, rows, TOPK),
        live_T=flags[0],
        padding_T=flags[1],
        has_live=bool(live),
        counts=torch.zeros(3, dtype=torch.int64),
        origins=RouteOrigins(),
        input_shape=(outer, inner),
        batch_first=batch_first,
        slot=None,
        ring=None,
        _reads_left=LAYERS,
    )


def dealt(batch, slot):
    """Return, by name, each row's (plane, row) and whether it counts."""
    found = Arranger().arrange(batch, slot)
    firsts = [ids[:, 0].tolist() for ids in found.ids_ATK]
    rows = batch.ids_LTK.shape[1]
    places = [[divmod(first // TOPK, rows) for first in each] for each in firsts]
    return dict(zip(found.names, zip(places, found.counts_AT.tolist(), strict=True), strict=True))


@pytest.mark.parametrize(("batch_first", "apart"), [(False, 2), (True, 1)])
def test_a_row_late_is_that_of_the_next_token_of_its_sequence(batch_first, apart):
    outer, inner = (4, 2) if not batch_first else (2, 4)
    places, counts = dealt(microbatch(outer, inner, batch_first=batch_first), 0)["rows one late"]
    inside = [row for row in range(8) if row + apart < 8]
    assert [places[row] for row in inside] == [(0, row + apart) for row in inside]
    assert [row for row in range(8) if counts[row]] == inside


def test_neighbouring_layers_keep_their_rows():
    found = dealt(microbatch(4, 2, batch_first=False), 1)
    for name, plane in (("as recorded", 1), ("previous MoE layer", 0), ("next MoE layer", 2)):
        assert found[name] == ([(plane, row) for row in range(8)], [True] * 8)


def test_the_outermost_layers_have_one_neighbour_and_one_sequence_no_other_order():
    assert "previous MoE layer" not in dealt(microbatch(4, 2, batch_first=False), 0)
    assert "next MoE layer" not in dealt(microbatch(4, 2, batch_first=False), LAYERS - 1)
    assert "batch-major rows" not in dealt(microbatch(8, 1, batch_first=False), 0)


def test_batch_major_rows_are_those_of_a_batch_that_was_not_transposed():
    places, _ = dealt(microbatch(4, 2, batch_first=False), 0)["batch-major rows"]
    assert places == [(0, sequence * 4 + position) for position in range(4) for sequence in (0, 1)]


def test_rows_without_a_route_count_on_neither_side():
    _, counts = dealt(microbatch(8, 1, batch_first=False, live=[3], padding=[7]), 0)[
        "rows one early"
    ]
    # Row 0 has none before it, 3 and 7 none of their own, 4 that of row 3.
    assert [row for row in range(8) if counts[row]] == [1, 2, 5, 6]


def test_a_shape_that_comes_again_is_dealt_the_same():
    arranger, batch = Arranger(), microbatch(4, 2, batch_first=False)
    first, again = (arranger.arrange(batch, 1) for _ in range(2))
    assert first.names == again.names
    assert torch.equal(first.ids_ATK, again.ids_ATK)


def test_each_layer_is_compared_first_and_one_of_each_chunk_later():
    first, second = canaries(1, None, [(2, 3), (7,)], whole=True)
    for canary in (first, second):
        canary.begin_step()
    assert [first.wants(2), first.wants(3), second.wants(7)] == [True, True, True]


def test_one_layer_is_looked_at_by_the_chunk_that_has_it():
    first, second = canaries(1, 7, [(2, 3), (7,)], whole=True)
    for canary in (first, second):
        canary.begin_step()
    assert [first.wants(2), second.wants(7)] == [False, True]


def test_a_canary_that_could_never_look_is_refused():
    with pytest.raises(ValueError, match=r"routers on layers \[2, 3\]"):
        canaries(1, 9, [(2, 3)], whole=True)
    canaries(1, 9, [(2, 3)], whole=False)  # Another pipeline stage may have it.
    with pytest.raises(ValueError, match="canary_every=-1"):
        canaries(-1, None, [(2, 3)], whole=True)
