"""Settings come from the environment, are checked, and keep their secrets."""

import pytest
from pydantic import ValidationError

from routereplay.sidecar.settings import Settings, misspelt_variables


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("ROUTEREPLAY_")]:
        monkeypatch.delenv(name)


def test_without_any_variable_it_listens_on_loopback_and_starts_its_own_engine():
    settings = Settings()

    assert (settings.host, settings.port, settings.redis_url) == ("127.0.0.1", 8400, None)
    assert settings.durability == "process"


def test_a_variable_sets_its_field(monkeypatch):
    monkeypatch.setenv("ROUTEREPLAY_TTL_S", "60")

    assert Settings().ttl_s == 60


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("redis_url", "http://localhost"),
        ("value_bytes", 2 * 1024 * 1024),
        ("ttl_s", 0),
        ("durability", "diskk"),
        ("port", 70000),
    ],
)
def test_a_value_that_cannot_work_is_refused(field, value):
    with pytest.raises(ValidationError, match=field):
        Settings(**{field: value})


def test_the_password_of_the_engine_is_not_shown():
    settings = Settings(redis_url="redis://:hunter2@example:6379")

    assert "hunter2" not in repr(settings)
    assert settings.redis_url.get_secret_value() == "redis://:hunter2@example:6379"


def test_states_outlive_records_and_uploads():
    settings = Settings(ttl_s=100, staging_ttl_s=500, tombstone_ttl_s=10)

    assert settings.index_ttl_s == 510


def test_a_misspelt_variable_is_found_and_the_recorders_are_left_alone():
    environ = {
        "ROUTEREPLAY_TTL": "1",
        "ROUTEREPLAY_TTL_S": "1",
        "ROUTEREPLAY_STORE_URL": "http://x",
    }
    environ |= {"ROUTEREPLAY_MAX_BODY_BYTE": "1", "PATH": "/bin"}

    assert misspelt_variables(environ) == {
        "ROUTEREPLAY_TTL": "ROUTEREPLAY_TTL_S",
        "ROUTEREPLAY_MAX_BODY_BYTE": "ROUTEREPLAY_MAX_BODY_BYTES",
    }


def test_the_embedded_engine_has_no_replica():
    with pytest.raises(ValidationError, match="has no replica"):
        Settings(durability="replica")
    assert Settings(durability="replica", redis_url="redis://x").durability == "replica"
