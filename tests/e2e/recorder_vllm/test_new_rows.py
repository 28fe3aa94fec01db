"""A conversation's rows cross the wire once, and together they are what the model computed."""

import itertools

import numpy as np
import pytest
from support.engine_core import engine_core_of, held_still

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ROW_NBYTES = 16


@pytest.fixture
def whole(sink, reference):
    """Check the rows of a record and its ancestors against the tokens and the reference."""

    def rows_of(request_id, choice=0):
        record = sink.wait(request_id, choice)
        parent = record.manifest.parent
        if parent is None:
            assert record.manifest.row_start == 0
            return record.experts
        before = rows_of(parent.request_id, parent.choice)
        assert len(before) >= record.manifest.row_start
        return np.concatenate([before[: record.manifest.row_start], record.experts])

    def check_whole(answer, prompt, choice=0):
        record = sink.wait(answer["id"], choice)
        tokens = [*prompt, *answer["choices"][choice]["token_ids"]]
        assert record.token_ids.tolist() == tokens
        assert record.manifest.complete
        expected = reference.experts(tokens)[:-1]
        assert np.array_equal(np.sort(rows_of(answer["id"], choice), -1), expected)
        return record.manifest

    return check_whole


def draw(seed, count=40):
    return [int(token) for token in np.random.default_rng(seed).integers(1, 500, count)]


def test_ten_turns_ship_every_row_exactly_once(api, sink, whole):
    """The conversation has 10 x (30 + 6) tokens; full rows would be 5.5 times as many."""
    session = {"X-Session-ID": "ten-turns"}
    before = sum(sink.chunk_sizes)
    prompt = []
    manifests = []
    for turn in range(10):
        prompt = [*prompt, *draw(turn, 30)]
        answer = api.complete(prompt, session, max_tokens=6)
        manifests.append(whole(answer, prompt))
        prompt = [*prompt, *answer["choices"][0]["token_ids"]]
    shipped = sum(sink.chunk_sizes) - before
    unique = len(prompt) - 1

    assert len(prompt) == 360
    assert shipped == unique * ROW_NBYTES, "1.00 x the unique rows"
    assert sum(manifest.rows for manifest in manifests) == unique
    full = sum(manifest.num_tokens - 1 for manifest in manifests)
    assert full > 5.4 * unique


def test_a_chat_that_goes_on_is_a_delta_streamed_or_not(api, sink, reference):
    session = {"X-Session-ID": "chat-goes-on"}
    messages = [{"role": "user", "content": "one two three"}]
    ids, manifests = [], []
    for turn in range(3):
        answer = api.chat("", session, messages=messages, max_tokens=5)
        ids.append(answer["id"])
        manifests.append(sink.wait(answer["id"]).manifest)
        said = answer["choices"][0]["message"]["content"]
        messages += [
            {"role": "assistant", "content": said},
            {"role": "user", "content": f"and then {turn}"},
        ]

    assert manifests[0].parent is None
    for before, manifest in itertools.pairwise(manifests):
        # The text of the answer may become other tokens; its prompt is shared at least.
        assert manifest.parent.request_id == before.request_id
        assert manifest.row_start >= before.prompt_len
    record = sink.wait(ids[2])
    expected = reference.experts(record.token_ids)[record.manifest.row_start : -1]
    assert np.array_equal(np.sort(record.experts, -1), expected)


def test_choices_share_the_rows_of_their_prompt(api, sink, whole):
    prompt = draw(20)
    before = sum(sink.chunk_sizes)
    answer = api.complete(prompt, max_tokens=5, n=4, temperature=1.0)
    manifests = [whole(answer, prompt, choice) for choice in range(4)]

    assert [manifest.row_start for manifest in manifests] == [0, 39, 39, 39]
    # 39 rows of the prompt once, and for each choice that of the last token and of 4 sampled.
    assert sum(sink.chunk_sizes) - before == (39 + 4 * 5) * ROW_NBYTES


def test_a_conversation_may_go_on_from_any_choice(api, whole):
    session = {"X-Session-ID": "any-choice"}
    prompt = draw(21)
    first = api.complete(prompt, session, max_tokens=5, n=3, temperature=1.0)
    for choice in (2, 0):
        longer = [*prompt, *first["choices"][choice]["token_ids"], *draw(22, 5)]
        manifest = whole(api.complete(longer, session, max_tokens=4), longer)
        assert manifest.row_start == 44
        assert (manifest.parent.request_id, manifest.parent.choice) == (first["id"], choice)


def test_what_does_not_extend_the_turn_before_has_all_its_rows(api, whole):
    session = {"X-Session-ID": "rewritten"}
    prompt = draw(23)
    answer = api.complete(prompt, session, max_tokens=5)
    rewritten = [7, *prompt[1:], *answer["choices"][0]["token_ids"], 9]
    manifest = whole(api.complete(rewritten, session, max_tokens=4), rewritten)

    assert (manifest.row_start, manifest.parent) == (0, None)


def test_a_changed_answer_leaves_the_prompt_shared(api, whole):
    session = {"X-Session-ID": "thoughts-left-out"}
    prompt = draw(24)
    api.complete(prompt, session, max_tokens=5)
    changed = [*prompt, 3, 4, 5]
    manifest = whole(api.complete(changed, session, max_tokens=4), changed)

    assert manifest.row_start == 40


def test_the_same_prompt_again_records_its_last_row_and_the_engine_lives(api, whole):
    """A start that equals the prompt's length ends the engine in vLLM 0.22 to 0.28."""
    session = {"X-Session-ID": "again"}
    prompt = draw(25)
    for turn in range(3):
        manifest = whole(api.complete(prompt, session, max_tokens=1 + turn), prompt)
        assert manifest.row_start == (39 if turn else 0)


def test_a_new_policy_begins_anew(api, whole):
    session = {"X-Session-ID": "policies"}
    prompt = draw(26)
    starts = []
    for version in ("1", "1", "2", "2"):
        xargs = {"policy_version": version}
        answer = api.complete(prompt, session, max_tokens=3, vllm_xargs=xargs)
        starts.append(whole(answer, prompt).row_start)
        prompt = [*prompt, *answer["choices"][0]["token_ids"], 7]

    assert starts == [0, 42, 0, 50]


def test_a_turn_after_a_stop_string_and_after_an_abort_is_whole(api, sink, whole):
    # The engine may be done before it can be held: then again, in another conversation.
    for attempt in range(10):
        name = f"cut-short-{attempt}"
        session = {"X-Session-ID": name}
        prompt = draw(270 + attempt)
        text = api.complete(prompt, max_tokens=12)["choices"][0]["text"]
        answer = api.complete(prompt, session, max_tokens=12, stop=[text[4:6]])
        prompt = [*prompt, *answer["choices"][0]["token_ids"]]
        xargs = {"trajectory_id": name}
        events = api.events("/v1/completions", prompt=prompt, max_tokens=900, vllm_xargs=xargs)
        first = next(events)
        for _ in range(5):
            next(events)
        with held_still(engine_core_of(api.server_pid)):
            events.close()
            aborted = sink.wait(first["id"])
        if aborted.manifest.finish_reason != "length":
            break
    prompt = [*aborted.token_ids.tolist(), *draw(28, 4)]
    manifest = whole(api.complete(prompt, session, max_tokens=4), prompt)

    assert aborted.manifest.finish_reason == "abort"
    assert aborted.manifest.parent.request_id == answer["id"]
    assert manifest.parent.request_id == first["id"]
    assert manifest.row_start == len(aborted.token_ids) - 1


def test_native_routes_on_demand_are_all_there(api, whole):
    session = {"X-Session-ID": "native"}
    prompt = draw(29)
    asked = {"return_routed_experts": 1}
    for turn in range(2):
        answer = api.complete(prompt, session, max_tokens=3, vllm_xargs=asked)
        assert answer["choices"][0]["routed_experts"]
        assert whole(answer, prompt).row_start == 0
        prompt = [*prompt, *answer["choices"][0]["token_ids"], 5 + turn]


def test_turns_of_many_conversations_at_once(api, whole):
    """More than cache and batch hold: prompts in chunks, between decoding, some preempted.

    Twelve conversations in one trajectory, and each turn of all of them in one request.
    """
    session = {"X-Session-ID": "crowd"}
    prompts = [draw(number, 60) for number in range(12)]
    starts, turns = [], []
    for _ in range(3):
        answer = api.complete(prompts, session, max_tokens=70, temperature=1.0)
        turns.append((answer, prompts))
        prompts = [
            [*prompt, *choice["token_ids"], *draw(number, 60)]
            for number, (prompt, choice) in enumerate(zip(prompts, answer["choices"], strict=True))
        ]
    assert api.metric("vllm:num_preemptions_total") > 0
    for answer, asked in turns:
        manifests = [whole(answer, prompt, number) for number, prompt in enumerate(asked)]
        starts.append({manifest.row_start for manifest in manifests})
        if starts[1:]:
            assert [manifest.parent.choice for manifest in manifests] == list(range(12))

    assert starts == [{0}, {129}, {259}]
