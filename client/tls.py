"""The client's side of TLS, for whoever speaks to a store: trainers and recorders."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

_SERVING = "Is `routereplay serve` running there?"


@dataclass(frozen=True)
class TlsFiles:
    """Files by which a store is recognised, and by which it recognises us; all are PEM."""

    ca_file: str | None = None
    """Who signed the store's certificate; the system's authorities without it."""
    cert_file: str | None = None
    """Our certificate, for a store that asks for one."""
    key_file: str | None = None
    """Its private key; in `cert_file` without it."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> TlsFiles:
        """Read `ROUTEREPLAY_TLS_*`."""
        return cls(
            environ.get("ROUTEREPLAY_TLS_CA_FILE") or None,
            environ.get("ROUTEREPLAY_TLS_CERT_FILE") or None,
            environ.get("ROUTEREPLAY_TLS_KEY_FILE") or None,
        )

    def context(self) -> ssl.SSLContext:
        """Return a context that checks the store's certificate and its name.

        Raises:
            ValueError: a file cannot be used; the message names its variable.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ValueError) as error:
            msg = f"ROUTEREPLAY_TLS_CA_FILE={self.ca_file!r} cannot be used: {error}"
            raise ValueError(msg) from error
        if self.key_file is not None and self.cert_file is None:
            msg = "ROUTEREPLAY_TLS_KEY_FILE is set and ROUTEREPLAY_TLS_CERT_FILE is not"
            raise ValueError(msg)
        if self.cert_file is not None:
            try:
                # An encrypted key must fail, not ask for its password on a terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password=lambda: "")
            except (OSError, ValueError) as error:
                msg = (
                    f"ROUTEREPLAY_TLS_CERT_FILE={self.cert_file!r} with "
                    f"ROUTEREPLAY_TLS_KEY_FILE={self.key_file!r} cannot be used: {error}"
                )
                raise ValueError(msg) from error
        return context


def connection_hint(error: BaseException, url: str) -> str:
    """Return what to do about a connection that failed."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "ROUTEREPLAY_TLS_CA_FILE names the authority that the store's certificate is of."
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return "It speaks plain HTTP: the address begins with http://."
    if not isinstance(error, http.client.HTTPException) and "disconnected" not in text:
        return _SERVING
    if url.startswith("https://"):
        # TLS 1.3 asks for our certificate after the handshake, so this is all that we see.
        return "If it asks for certificates, ROUTEREPLAY_TLS_CERT_FILE must name one it takes."
    return f"{_SERVING} If it speaks TLS, the address begins with https://."
