"""What the page of compatibility says is what the last runs have shown."""

from routereplay.cli.compatibility import load_results, merged, page
from routereplay.patches.vllm.refusals import REFUSALS


def line(outcome, *, version="0.30.0", behaviour="stop string", reason=""):
    return {"version": version, "behaviour": behaviour, "outcome": outcome, "reason": reason}


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
