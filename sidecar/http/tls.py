"""The server's side of TLS, and certificates that change while it runs."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from routereplay.sidecar.errors import TlsMisconfigured
from routereplay.sidecar.settings import Settings

logger = logging.getLogger(__name__)


class ServerTls:
    """An SSL context made from files, which `refresh` brings up to date for new connections."""

    def __init__(self, certfile: Path, settings: Settings) -> None:
        self._certfile = certfile
        self._settings = settings
        self._seen: tuple[object, ...] = ()
        self.context = self._make()
        self._seen = self._marks()

    @classmethod
    def from_settings(cls, settings: Settings) -> ServerTls | None:
        """Return the TLS that `settings` ask for, or None for plain HTTP.

        Raises:
            TlsMisconfigured: a file cannot be used, or one setting misses another.
        """
        wants = (settings.ssl_keyfile, settings.ssl_ca_certs, settings.ssl_cert_reqs)
        if settings.ssl_certfile is None:
            if any(wants):
                msg = "TLS needs the server's own certificate: set --ssl-certfile (and its key)"
                raise TlsMisconfigured(msg)
            return None
        if settings.ssl_cert_reqs and settings.ssl_ca_certs is None:
            msg = (
                "client certificates are asked for and --ssl-ca-certs does not say who signs "
                "them: any public authority would do, and with it anyone"
            )
            raise TlsMisconfigured(msg)
        return cls(settings.ssl_certfile, settings)

    def refresh(self) -> bool:
        """Take up files that have changed; return whether all is in order.

        Pairs are replaced one file after the other: a key that does not fit its
        certificate yet changes nothing, and is tried again.
        """
        try:
            marks = self._marks()
            if marks != self._seen:
                self._make()
                self._load(self.context)
                self._seen = marks
                logger.info("certificate %s was read again", self._certfile)
        except TlsMisconfigured as error:
            logger.error("the certificate stays as it was: %s", error.message)
            return False
        return True

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load(context)
        context.verify_mode = ssl.VerifyMode(self._settings.ssl_cert_reqs)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        settings = self._settings
        try:
            # An encrypted key must fail, not ask for its password on a terminal.
            context.load_cert_chain(self._certfile, settings.ssl_keyfile, password=lambda: "")
            if settings.ssl_ca_certs is not None:
                context.load_verify_locations(settings.ssl_ca_certs)
        except (OSError, ValueError) as error:
            names = (self._certfile, settings.ssl_keyfile, settings.ssl_ca_certs)
            files = ", ".join(str(name) for name in names if name is not None)
            msg = f"TLS cannot be set up from {files}: {error}"
            raise TlsMisconfigured(msg) from error

    def _marks(self) -> tuple[object, ...]:
        settings = self._settings
        try:
            found = [
                path.stat()
                for path in (self._certfile, settings.ssl_keyfile, settings.ssl_ca_certs)
                if path is not None
            ]
        except OSError as error:
            msg = f"a file of the certificate cannot be read: {error}"
            raise TlsMisconfigured(msg) from error
        return tuple((mark.st_mtime_ns, mark.st_size, mark.st_ino) for mark in found)
