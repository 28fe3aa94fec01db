"""Errors that stop the sidecar from starting; none of them crosses the wire."""

from __future__ import annotations

from routereplay.wire.errors import RouteReplayError


class EngineStartError(RouteReplayError):
    """The embedded engine did not start."""

    code = "engine_start_failed"


class KeyFileInvalid(RouteReplayError):
    """A key file that cannot be read, or that nobody should trust."""

    code = "key_file_invalid"


class ExposedWithoutKeys(RouteReplayError):
    """A store that strangers could reach, without API keys."""

    code = "exposed_without_keys"


class TlsMisconfigured(RouteReplayError):
    """Certificates or keys that cannot be used."""

    code = "tls_misconfigured"


class EngineMisconfigured(RouteReplayError):
    """The engine would not keep what the store promises."""

    code = "engine_misconfigured"


class BadConfigFile(RouteReplayError):
    """The file that `ROUTEREPLAY_CONFIG` names cannot be read, or is no TOML of settings."""

    code = "bad_config_file"
