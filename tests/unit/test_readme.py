"""The first screen of the README has two commands, and its numbers are those of the pages."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def page(name):
    return (ROOT / "docs" / name).read_text()


def number(text):
    return int(text.replace(",", ""))


def test_the_first_screen_has_exactly_two_commands_that_exist():
    first, second = re.search(r"```sh\n(.*?)```", README, re.DOTALL)[1].splitlines()

    assert README[: README.index("```sh")].count("\n") < 20
    for line in (first, second):
        assert (ROOT / line.split()[0]).stat().st_mode & 0o111


def test_every_measured_number_names_the_command_that_shows_it():
    table = README[README.index("| what | measured | shown by |") :].split("\n\n")[0]
    commands = [row.split("|")[3].strip().strip("`") for row in table.splitlines()[2:]]

    assert len(commands) > 4
    for command in commands:
        paths = [word for word in command.split() if "/" in word]
        assert paths
        assert all((ROOT / path).exists() for path in paths), command


def test_what_is_said_of_faults_and_mutants_is_what_was_seen():
    kinds, records = re.search(
        r"over (\d+) kinds of failure \| 0 of over ([\d,]+),", README
    ).groups()
    seen = re.search(
        r"\*\*(\d+) rows of .*? held.*?: (\d+) records acknowledged, 0 lost, 0 wrong",
        page("faults.md"),
    )
    (tried,) = re.search(r"over (\d+) tried, all caught", README).groups()
    caught = re.search(r"\*\*(\d+) mutants, (\d+) caught, 0 escaped", page("mutants.md"))

    assert int(seen[1]) > int(kinds)
    assert int(seen[2]) > number(records)
    assert int(caught[1]) == int(caught[2]) > int(tried)
