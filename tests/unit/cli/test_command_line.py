"""The command line itself: quick to answer, complete, and clear about what it cannot do."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from routereplay.cli.app import app

# What makes a command line slow to answer: none of it may be needed for help or completion.
_SLOW = {"numpy", "msgspec", "httpx", "fastapi", "pydantic", "redis", "torch", "vllm"}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def python(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_help_and_completion_import_nothing_slow():
    loaded = python("import sys; import routereplay.cli.app; print(*sys.modules)").split()

    assert "routereplay.cli.commands.get" in loaded
    assert _SLOW.isdisjoint(loaded)


def test_every_command_prints_json_if_asked():
    for command in app.registered_commands:
        if command.name in {"serve"}:  # it prints its log
            continue
        assert "--json" in run(command.name, "--help").output, command.name


def test_the_shell_completes_commands(monkeypatch):
    monkeypatch.setenv("_ROUTEREPLAY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "routereplay do")
    monkeypatch.setenv("COMP_CWORD", "1")
    answer = CliRunner().invoke(app, [], prog_name="routereplay")

    assert answer.output.split() == ["doctor"]


def test_an_unreachable_store_says_what_to_do():
    told = run("get", "x", "--store", "http://127.0.0.1:9")
    as_json = run("get", "x", "--json", "--store", "http://127.0.0.1:9")

    assert told.exit_code == as_json.exit_code == 1
    assert "unreachable: " in told.output
    assert "routereplay serve" in told.output
    assert '"code": "unreachable"' in as_json.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layers", "0:"], "0:24"),
        (["--tokens", "a:b"], "whole numbers"),
        (["--tokens", "7"], "whole numbers"),
        (["--output", "routes.txt"], ".safetensors"),
    ],
)
def test_what_means_nothing_is_a_usage_error_that_shows_an_example(arguments, said):
    answer = run("get", "x", *arguments)

    assert answer.exit_code == 2
    assert said in answer.output
