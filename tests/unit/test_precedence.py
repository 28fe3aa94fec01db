"""Flags win over variables, variables over the file, the file over defaults; everywhere."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from routereplay.cli.app import app
from routereplay.patches.vllm import config_file
from routereplay.sidecar import server
from routereplay.sidecar.settings import Settings

FILE = """
[store]
ttl_s = 111
port = 1111
durability = "memory"

[recorder]
store_url = "http://from-the-file:1"
queue_bytes = 5
only_new_rows = false
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    path = tmp_path / "routereplay.toml"
    path.write_text(FILE)
    for name in ("TTL_S", "PORT", "DURABILITY", "STORE_URL", "CONFIG"):
        # Set and deleted: what the command sets of them is taken back after the test.
        monkeypatch.setenv(f"ROUTEREPLAY_{name}", "")
        monkeypatch.delenv(f"ROUTEREPLAY_{name}")
    return path


def serve(monkeypatch, *arguments):
    """The settings that `routereplay serve` would serve with."""
    served = []
    monkeypatch.setattr(server, "serve", served.append)
    answer = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    return served[0] if served else answer


def test_the_store_takes_each_setting_from_the_strongest_that_has_it(config, monkeypatch):
    monkeypatch.setenv("ROUTEREPLAY_PORT", "2222")
    monkeypatch.setenv("ROUTEREPLAY_TTL_S", "222")

    found = serve(monkeypatch, "--config", config, "--port", 3333)
    other = serve(monkeypatch, "--config", config, "--set", "ttl_s=333")

    assert (found.port, found.ttl_s, found.durability, found.host) == (
        3333,
        222,
        "memory",
        Settings.model_fields["host"].default,
    )
    assert (other.port, other.ttl_s) == (2222, 333)


def test_the_recorder_takes_from_the_file_what_the_environment_leaves_out(config):
    environ = {"ROUTEREPLAY_CONFIG": str(config), "ROUTEREPLAY_QUEUE_BYTES": "7"}

    config_file.fill(environ)

    assert environ["ROUTEREPLAY_STORE_URL"] == "http://from-the-file:1"
    assert environ["ROUTEREPLAY_QUEUE_BYTES"] == "7"
    assert environ["ROUTEREPLAY_ONLY_NEW_ROWS"] == "0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[store]\nttl = 5", "ROUTEREPLAY_TTL"),
        ("[store]\nttl_s = 'soon'", "ROUTEREPLAY_TTL_S"),
        ("store = 5", "is no table"),
        ("[store", "bad_config_file"),
        ("ttl_s = 5", "outside of the tables"),
        ("[store]\nttl_sec = 5", "did you mean ttl_s?"),
    ],
)
def test_a_file_that_means_nothing_is_refused_by_name(config, monkeypatch, text, said):
    config.write_text(text)

    answer = serve(monkeypatch, "--config", config)

    assert answer.exit_code in (1, 2)
    assert said in answer.output


def test_a_recorder_s_file_that_means_nothing_is_refused_by_name(config):
    config.write_text("[recorder]\nqueue_byte = 5")

    with pytest.raises(ValueError, match="queue_byte'"):
        config_file.fill({"ROUTEREPLAY_CONFIG": str(config)})
    config.write_text("queue_bytes = 5")
    with pytest.raises(ValueError, match="outside of the tables"):
        config_file.fill({"ROUTEREPLAY_CONFIG": str(config)})
    with pytest.raises(ValueError, match="No such file"):
        config_file.fill({"ROUTEREPLAY_CONFIG": str(config) + ".gone"})


def test_the_file_may_hold_every_setting_of_the_recorder_but_the_key():
    root = Path(config_file.__file__).parent
    files = [root / "settings.py", root / "plugin.py", root.parents[1] / "client" / "tls.py"]
    text = "".join(path.read_text() for path in files)
    read = set(re.findall(r'get\(\s*"ROUTEREPLAY_(\w+)"', text))
    read |= set(re.findall(r'_positive\(environ, "(\w+)"', text))

    assert {name.lower() for name in read} - {"config", "api_key"} == config_file.NAMES
