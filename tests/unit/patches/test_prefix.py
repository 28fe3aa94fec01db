"""What is known of a trajectory decides which rows a request leaves out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routereplay.patches.vllm.prefix import KnownPrefixes, Lineage, ParentId

LINEAGE = Lineage("engine", "tiny", "", "")
TOKENS = list(range(100, 200))


def record(number=0, choice=0):
    return ParentId(f"chatcmpl-{number}", choice, f"engine.{number}.{choice}")


@pytest.fixture
def known():
    prefixes = KnownPrefixes()
    # 20 tokens of prompt and 6 sampled ones: the last of these has no row.
    prefixes.note("t", record(), LINEAGE, TOKENS[:20], TOKENS[20:26])
    return prefixes


@pytest.mark.parametrize(
    ("prompt", "rows"),
    [
        (TOKENS[:40], 25),
        (TOKENS[:26], 25),
        ([*TOKENS[:25], 7, 8], 25),  # the last sampled token has no row and may change
        (TOKENS[:25], 24),  # one row is always left to record
        ([*TOKENS[:22], 7, 8, 9, 10, 11], 20),  # the answer was changed: its prompt is left
        (TOKENS[:22], 20),
        (TOKENS[:21], 20),
        (TOKENS[:20], 19),
        (TOKENS[:19], None),
        ([7, *TOKENS[1:40]], None),
        ([*TOKENS[:19], 7, *TOKENS[20:40]], None),
        ([7], None),
    ],
)
def test_a_prompt_leaves_out_the_rows_of_what_it_repeats(known, prompt, rows):
    shared = known.find("t", LINEAGE, prompt)

    assert (shared and shared.rows) == rows
    assert shared is None or shared.parent == record()


@pytest.mark.parametrize("changed", ["engine_id", "model_name", "policy_version", "weight_version"])
def test_another_server_adapter_or_policy_shares_nothing(known, changed):
    assert known.find("t", LINEAGE._replace(**{changed: "other"}), TOKENS) is None


def test_another_trajectory_shares_nothing(known):
    assert known.find("u", LINEAGE, TOKENS) is None


def test_a_loss_makes_the_next_turn_begin_anew(known):
    known.forget("t")
    known.forget("never heard of")

    assert known.find("t", LINEAGE, TOKENS) is None


def test_of_several_turns_the_one_that_covers_most_is_the_parent(known):
    known.note("t", record(1), LINEAGE, TOKENS[:30], TOKENS[30:40])
    known.note("t", record(2), LINEAGE, [*TOKENS[:26], 1, 2, 3], [4, 5])
    known.note("t", record(3), LINEAGE, TOKENS[:30], [9] * 60)

    assert known.find("t", LINEAGE, TOKENS) == (record(1), 39)
    assert known.find("t", LINEAGE, [*TOKENS[:26], 1, 2, 3, 4, 5, 6]) == (record(2), 30)
    # Of equals the newest: a rewritten answer leaves the prompt of turn 3, as long as 1's.
    assert known.find("t", LINEAGE, [*TOKENS[:30], 0, 0]) == (record(3), 30)


def test_memory_is_bounded_by_the_turns_of_one_and_of_all():
    prefixes = KnownPrefixes(limit=100)
    for turn in range(500):
        prefixes.note("long", record(turn), LINEAGE, TOKENS[:5], [turn, 0])
    assert prefixes.find("long", LINEAGE, [*TOKENS[:5], 0, 0]) == (record(499), 5)
    assert prefixes.find("long", LINEAGE, [*TOKENS[:5], 499, 0]) == (record(499), 6)
    for trajectory in range(99):
        prefixes.note(f"t{trajectory}", record(), LINEAGE, TOKENS[:5], [1, 2])

    assert prefixes.find("long", LINEAGE, TOKENS) is None, "the least recently used goes"
    assert prefixes.find("t0", LINEAGE, TOKENS) is not None
    assert prefixes._count == sum(map(len, prefixes._trajectories.values())) <= 100


@given(st.data())
def test_what_is_left_out_is_always_a_turns_row_of_the_same_tokens(data):
    """Against a model that keeps all tokens and compares them one by one."""
    prefixes = KnownPrefixes()
    tokens = st.lists(st.integers(0, 1), min_size=1, max_size=6)
    turns = data.draw(st.lists(st.tuples(tokens, tokens), max_size=6))
    for number, (prompt, completion) in enumerate(turns):
        prefixes.note("t", record(number), LINEAGE, prompt, completion)
    prompt = data.draw(tokens)
    shared = prefixes.find("t", LINEAGE, prompt)

    best = 0
    for before, completion in turns:
        whole = [*before, *completion[:-1]]
        for rows in (len(before), len(whole)):
            if prompt[:rows] == whole[:rows]:
                best = max(best, min(rows, len(prompt) - 1))
    if best == 0:
        assert shared is None
        return
    assert shared.rows == best
    before, completion = turns[int(shared.parent.request_id.removeprefix("chatcmpl-"))]
    assert np.array_equal([*before, *completion][: shared.rows], prompt[: shared.rows])
