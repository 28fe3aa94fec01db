import subprocess
import sys
import types

import pytest

from routereplay.patches.vllm import install, plugin
from routereplay.patches.vllm.settings import GIB, Settings

PROBE = """
import sys
import routereplay.patches.vllm.plugin as plugin
plugin.register()
heavy = {"numpy", "torch", "vllm", "httpx", "msgspec", "blake3", "prometheus_client"}
print(sorted(heavy & set(sys.modules)))
"""


def test_the_plugin_module_imports_the_standard_library_only():
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.strip() == "[]"


@pytest.fixture
def installed(monkeypatch):
    """What `install` was called with, in a process that parses the engine's arguments."""
    calls = []
    monkeypatch.setattr(install, "install", lambda **given: calls.append(given))
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", types.ModuleType("arg_utils"))
    monkeypatch.delenv("ROUTEREPLAY_ENABLED", raising=False)
    monkeypatch.setenv("ROUTEREPLAY_STORE_URL", "http://127.0.0.1:8400")
    return calls


def test_a_front_end_with_a_store_is_recorded(installed):
    plugin.register()

    assert installed == [{"engine_only": False}]


@pytest.mark.parametrize("value", ["0", "false", "OFF", "no"])
def test_enabled_0_leaves_vllm_alone(installed, monkeypatch, value):
    monkeypatch.setenv("ROUTEREPLAY_ENABLED", value)
    plugin.register()

    assert installed == []


def test_without_a_store_vllm_is_left_alone(installed, monkeypatch):
    monkeypatch.delenv("ROUTEREPLAY_STORE_URL")
    plugin.register()

    assert installed == []


def test_a_worker_is_left_alone(installed, monkeypatch):
    monkeypatch.delitem(sys.modules, "vllm.engine.arg_utils")
    monkeypatch.delitem(sys.modules, "vllm.v1.engine.core", raising=False)
    plugin.register()

    assert installed == []


def test_an_engine_core_alone_gets_its_part(installed, monkeypatch):
    monkeypatch.delitem(sys.modules, "vllm.engine.arg_utils")
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.core", types.ModuleType("core"))
    plugin.register()

    assert installed == [{"engine_only": True}]


def test_settings_come_from_the_environment(tmp_path):
    key = tmp_path / "key"
    key.write_text("secret\n")
    settings = Settings.from_env(
        {
            "ROUTEREPLAY_STORE_URL": "http://user:pass@store:8400/",
            "ROUTEREPLAY_API_KEY_FILE": str(key),
            "ROUTEREPLAY_QUEUE_BYTES": "1e6",
        }
    )

    assert settings.store_url == "http://user:pass@store:8400"
    assert (settings.api_key, settings.api_key_file) == (None, key)
    assert settings.queue_bytes == 1_000_000
    assert settings.retry_deadline_s == 600.0


def test_secrets_are_not_in_what_is_logged():
    settings = Settings("http://user:pass@store:8400", api_key="secret")

    assert "secret" not in repr(settings)
    assert settings.store_name == "http://store:8400"


def test_defaults_hold_without_any_variable():
    assert Settings.from_env({"ROUTEREPLAY_STORE_URL": "unix:///run/s.sock"}).queue_bytes == GIB


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ROUTEREPLAY_STORE_URL", "store:8400"),
        ("ROUTEREPLAY_STORE_URL", "redis://store"),
        ("ROUTEREPLAY_STORE_URL", "unix://"),
        ("ROUTEREPLAY_QUEUE_BYTES", "many"),
        ("ROUTEREPLAY_QUEUE_BYTES", "-1"),
        ("ROUTEREPLAY_RETRY_DEADLINE_S", "inf"),
        ("ROUTEREPLAY_CODEC", "zip"),
        ("ROUTEREPLAY_API_KEY_FILE", "/nowhere/key"),
    ],
)
def test_a_variable_that_means_nothing_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        Settings.from_env({"ROUTEREPLAY_STORE_URL": "http://store", name: value})
