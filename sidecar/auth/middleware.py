"""Lets a request through if its key allows it; what is not named here needs a key."""

from __future__ import annotations

import base64
import binascii
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from routereplay.sidecar.admission import Admission
from routereplay.sidecar.api.problems import problem, status_of
from routereplay.sidecar.auth.hosts import is_local_name
from routereplay.sidecar.auth.key_store import WatchedKeys
from routereplay.sidecar.auth.keys import utc_now
from routereplay.sidecar.auth.principal import ANYONE, Principal
from routereplay.sidecar.auth.principal import Scope as KeyScope
from routereplay.sidecar.metrics import Metrics
from routereplay.wire.errors import Forbidden, RateLimited, RouteReplayError, Unauthenticated

_NOSNIFF = (b"x-content-type-options", b"nosniff")

OPEN_PATHS = frozenset({"/livez", "/readyz", "/"})
"""Probes come without a key, and learn nothing but yes or no. The page holds nothing: its
user types a key into it, and with that it asks for what it shows."""


class Authenticate:
    """ASGI middleware: sets `request.state.principal`, or answers 401 or 403.

    It stands before every lookup, so a refusal says nothing of what is stored.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: WatchedKeys | None,
        admission: Admission,
        metrics: Metrics,
        allowed_hosts: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._keys = keys
        self._admission = admission
        self._metrics = metrics
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its principal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with contextlib.ExitStack() as held:
            try:
                principal = self._principal(scope)
                if principal is not None:
                    _require(principal, scope)
                    held.enter_context(self._admission.request_of(principal))
            except (Unauthenticated, Forbidden, RateLimited) as error:
                self._metrics.errors.labels(error.code).inc()
                await _refuse(error, scope, receive, send)
                return
            await self._serve(principal, scope, receive, send)

    async def _serve(
        self, principal: Principal | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        scope.setdefault("state", {})["principal"] = principal

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                # No browser may take routes, or an id in a message, for a page.
                headers = list(message.get("headers", ()))
                if all(name != _NOSNIFF[0] for name, _ in headers):
                    headers.append(_NOSNIFF)
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, sending)

    def _principal(self, scope: Scope) -> Principal | None:
        """Return who asks; None for a probe without a key."""
        if self._keys is None:
            self._check_host(scope)
            return ANYONE
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        if not sent and scope["path"] in OPEN_PATHS:
            return None
        if len(sent) != 1:
            msg = "send the store's API key, once: Authorization: Bearer rr_..."
            raise Unauthenticated(msg)
        return self._keys.ring.principal(_key(sent[0], scope["method"]), utc_now())

    def _check_host(self, scope: Scope) -> None:
        for name, value in scope["headers"]:
            if name == b"host" and not is_local_name(value.decode("latin-1"), self._allowed_hosts):
                msg = (
                    f"asked as {value[:80].decode('latin-1')!r}; a store without API keys answers "
                    "to addresses and to names that no stranger can have. Use its address, name it "
                    "in ROUTEREPLAY_ALLOWED_HOSTS, or make keys with `routereplay keys new`"
                )
                raise Forbidden(msg)


def scope_of(method: str, path: str) -> KeyScope:
    """Return what a key must allow for a request."""
    if method == "POST" and path == "/v1/ingest":
        return "write"
    if method in ("GET", "HEAD") or (method == "POST" and path == "/v1/fetch"):
        return "read"
    return "admin"


def _require(principal: Principal, scope: Scope) -> None:
    if scope["path"] in OPEN_PATHS:
        return
    needed = scope_of(scope["method"], scope["path"])
    if not principal.may(needed):
        msg = (
            f"API key {principal.key_id} allows {', '.join(sorted(principal.scopes))}; "
            f"{scope['method']} here needs {needed}"
        )
        raise Forbidden(msg, needed=needed)


def _key(header: bytes, method: str) -> str:
    """Return the key that an Authorization header carries.

    Basic is what a browser can send: the key is the password. For reading only, as a
    browser also sends it when a foreign page makes it post a form.
    """
    kind, _, value = header.decode("latin-1").strip().partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic" and method in ("GET", "HEAD"):
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


async def _refuse(error: RouteReplayError, scope: Scope, receive: Receive, send: Send) -> None:
    response = problem(status_of(type(error)), error.code, error.message, error.details)
    if isinstance(error, Unauthenticated):
        challenge = 'Bearer realm="routereplay", Basic realm="routereplay", charset="UTF-8"'
        response.headers["WWW-Authenticate"] = challenge
    await response(scope, receive, send)
