"""What the page of compatibility says is what the last runs have shown."""

from routereplay.cli.compatibility import load_results, merged, page
from routereplay.patches.vllm.refusals import REFUSALS


def line(outcome, *, version="0.30.0", behaviour="stop string", reason="", without_tap=False):
    return {
        "version": version,
        "behaviour": behaviour,
        "outcome": outcome,
        "reason": reason,
        "without_tap": without_tap,
    }


def test_a_behaviour_that_two_tests_show_is_seen_only_if_both_pass():
    found = merged({}, [line("passed"), line("failed"), line("passed")])

    assert found["0.30.0"]["stop string"]["outcome"] == "failed"


def test_a_run_replaces_what_it_ran_and_keeps_the_rest():
    before = merged({}, [line("failed"), line("passed", behaviour="abort")])
    after = merged(before, [line("passed"), line("passed", version="0.9.0")])

    assert list(after) == ["0.9.0", "0.30.0"]
    assert {name: found["outcome"] for name, found in after["0.30.0"].items()} == {
        "stop string": "passed",
        "abort": "passed",
    }


def test_a_behaviour_that_one_test_skips_and_another_shows_is_seen():
    found = merged({}, [line("skipped", reason="not here"), line("passed")])

    assert found["0.30.0"]["stop string"] == {"outcome": "passed", "reason": ""}


def test_a_run_without_the_recorder_says_only_whether_tests_need_it():
    before = merged({}, [line("failed"), line("passed", behaviour="abort")])
    lines = [
        line("passed", without_tap=True),
        line("passed", behaviour="abort", without_tap=True),
        line("failed", behaviour="abort", without_tap=True),
        line("passed", behaviour="never seen", without_tap=True),
    ]
    after = merged(before, lines)["0.30.0"]

    assert after["stop string"] == {"outcome": "failed", "reason": "", "needs_tap": True}
    assert after["abort"] == {"outcome": "passed", "reason": "", "needs_tap": False}
    assert "never seen" not in after


def test_what_a_test_needs_is_kept_when_it_runs_with_the_recorder_again():
    before = merged({}, [line("passed"), line("passed", without_tap=True)])

    assert merged(before, [line("passed")])["0.30.0"]["stop string"]["needs_tap"]


def test_every_behaviour_on_the_page_fails_without_the_recorder():
    needs = {}
    for found in load_results().values():
        for name, each in found.items():
            needs.setdefault(name, []).extend([each["needs_tap"]] if "needs_tap" in each else [])

    assert [name for name, seen in needs.items() if not all(seen)] == []


def test_nothing_on_the_page_failed_and_at_least_three_releases_were_run():
    results = load_results()

    assert len(results) >= 3
    assert [
        (version, name)
        for version, found in results.items()
        for name, each in found.items()
        if each["outcome"] == "failed"
    ] == []


def test_every_refusal_is_on_the_page():
    text = page()

    assert all(f"| {refusal.name} | {refusal.reason} |" in text for refusal in REFUSALS)
