"""The command line itself: quick to answer, complete, and clear about what it cannot do."""

import json
import subprocess
import sys

import pytest
import typer
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
    group = typer.main.get_command(app)
    below = {
        f"{name} {sub}".strip(): found
        for name, command in group.commands.items()
        for sub, found in getattr(command, "commands", {"": command}).items()
    }
    missing = {
        name
        for name, command in below.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    }

    assert len(below) > 12
    assert missing == {"serve"}  # its log is JSON lines


def test_a_wrong_call_is_told_as_json_if_asked():
    command = [sys.executable, "-m", "routereplay.cli", "get", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    error = json.loads(ended.stdout)["error"]

    assert ended.returncode == 2
    assert error["code"] == "usage"
    assert "ID" in error["message"]


def test_what_is_printed_as_json_ends_with_the_status_of_the_command():
    command = [sys.executable, "-m", "routereplay.cli", "size", "--json"]
    good, bad = (
        subprocess.run([*command, of], capture_output=True, text=True, check=False, timeout=60)
        for of in ("48x8x128", "nowhere")
    )

    assert (good.returncode, json.loads(good.stdout)["bytes_per_token"]) == (0, 384)
    assert (bad.returncode, json.loads(bad.stdout)["error"]["code"]) == (1, "model")


def test_all_that_a_command_lacks_is_named_at_once(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    lacking = run("demo")

    assert lacking.exit_code == 1
    assert "pip install 'routereplay[vllm]' 'routereplay[megatron]'" in lacking.output


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


def test_sizes_are_those_of_a_model(tmp_path):
    config = {"model_type": "qwen3_moe", "num_hidden_layers": 48, "num_experts": 128}
    config |= {"num_experts_per_tok": 8, "norm_topk_prob": True}
    (tmp_path / "config.json").write_text(json.dumps(config))

    of_config = json.loads(run("size", tmp_path, "--tokens", 1000, "--json").stdout)
    of_shape = json.loads(run("size", "48x8x128", "--tokens", 1000, "--json").stdout)
    wide = json.loads(run("size", "61x8x384", "--json").stdout)

    assert of_config == of_shape
    assert (of_config["bytes_per_token"], of_config["bytes_per_trajectory"]) == (384, 388_000)
    assert (wide["dtype"], wide["bytes_per_token"]) == ("uint16", 976)


def test_a_model_that_has_no_size_says_why(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')

    dense, nowhere = run("size", tmp_path), run("size", tmp_path / "nowhere")

    assert (dense.exit_code, nowhere.exit_code) == (1, 1)
    assert "dense_model" in dense.output
    assert "LAYERSxTOPKxEXPERTS" in nowhere.output
