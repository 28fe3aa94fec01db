"""Every error that can cross the wire, and the one table that maps them to HTTP.

    RouteReplayError                     .code is stable and documented
    ├─ WireError                         the bytes are wrong
    │   ├─ UnsupportedWireVersion        bad_version
    │   ├─ MalformedFrame                malformed_frame
    │   ├─ CorruptRecord                 corrupt
    │   ├─ InvalidRoutes                 invalid_routes
    │   └─ InvalidIdentifier             invalid_id
    ├─ RouteStoreError                   the store said no
    │   ├─ NotFound                      not_found, never seen by this store
    │   ├─ RoutesPending                 pending, seen but not sealed yet
    │   ├─ RoutesExpired                 expired, sealed once and gone by its TTL
    │   ├─ RoutesDeleted                 deleted, removed on request
    │   ├─ RoutesDropped                 dropped, lost by the recorder, with its reason
    │   ├─ RecordConflict                conflict, same key and other content
    │   ├─ UploadIncomplete              incomplete, sealed without all its chunks
    │   ├─ ParentMismatch                parent_mismatch, a delta on other tokens or another model
    │   ├─ ParentLost                    parent_lost, a delta whose parent the store has not
    │   ├─ BadRequest                    bad_request
    │   ├─ TooLarge                      too_large
    │   ├─ LengthRequired                length_required
    │   ├─ HeadersTooLarge               headers_too_large
    │   ├─ RequestTooSlow                too_slow, the bytes did not come in time
    │   ├─ Unauthenticated               unauthenticated, no key, or one that is not known
    │   ├─ Forbidden                     forbidden, a key that may not do this
    │   ├─ LimitReached                  limit_reached, a trajectory holds all that it may
    │   ├─ RateLimited                   rate_limited, one key asks for too much at a time
    │   ├─ StoreFull                     store_full
    │   └─ StoreUnavailable              unavailable, the engine behind the store is away
    ├─ TransportError                    no answer came
    │   ├─ StoreUnreachable              unreachable
    │   └─ StoreTimeout                  timeout
    ├─ CoverageError                     routes do not fit the tokens (routereplay.client)
    ├─ ReplayError                       replay went wrong (routereplay.patches.megatron)
    └─ PatchError                        the host library has drifted (routereplay.patches)

`CoverageError`, `ReplayError` and `PatchError` never cross the wire and are defined
beside the code that raises them. Misuse by a caller is `TypeError` or `ValueError`.
"""

from __future__ import annotations

from typing import Any, ClassVar


class RouteReplayError(Exception):
    """Base of every error of this package; `code` is stable, `details` is JSON-able."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, /, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details
        self.retry_after_s = 0.0
        """How long the store asked to wait before the next try."""


class WireError(RouteReplayError):
    """The bytes are wrong."""

    code = "wire"


class UnsupportedWireVersion(WireError):
    """A frame of another wire version."""

    code = "bad_version"


class MalformedFrame(WireError):
    """A frame that cannot be parsed, or whose sizes contradict each other."""

    code = "malformed_frame"


class CorruptRecord(WireError):
    """Bytes whose digest is not the one that was recorded."""

    code = "corrupt"


class InvalidRoutes(WireError):
    """Routes of the wrong dtype or shape, or with an expert id out of range."""

    code = "invalid_routes"


class InvalidIdentifier(WireError):
    """A request or trajectory id that cannot be a key."""

    code = "invalid_id"


class RouteStoreError(RouteReplayError):
    """The store answered, and said no."""

    code = "store"


class NotFound(RouteStoreError):
    """This store never saw the id."""

    code = "not_found"


class RoutesPending(RouteStoreError):
    """The recorder has begun to send this request and has not sealed it."""

    code = "pending"


class RoutesExpired(RouteStoreError):
    """The record was sealed and its time to live has passed."""

    code = "expired"


class RoutesDeleted(RouteStoreError):
    """The record was deleted on request."""

    code = "deleted"


class RoutesDropped(RouteStoreError):
    """The recorder lost the routes and says why."""

    code = "dropped"


class RecordConflict(RouteStoreError):
    """A record with this key and other content is already sealed."""

    code = "conflict"


class UploadIncomplete(RouteStoreError):
    """A seal whose chunks are not all staged."""

    code = "incomplete"


class ParentMismatch(RouteStoreError):
    """A delta names a parent that has other tokens, another shape, or too few rows."""

    code = "parent_mismatch"


class ParentLost(RouteStoreError):
    """A delta names a parent that this store never saw, or that is gone."""

    code = "parent_lost"


class BadRequest(RouteStoreError):
    """A query or body that means nothing."""

    code = "bad_request"


class TooLarge(RouteStoreError):
    """A body over the store's limit."""

    code = "too_large"


class LengthRequired(RouteStoreError):
    """A body without Content-Length."""

    code = "length_required"


class HeadersTooLarge(RouteStoreError):
    """A request line and headers over the store's limit."""

    code = "headers_too_large"


class RequestTooSlow(RouteStoreError):
    """The rest of a request did not come in time; the same bytes may be sent again."""

    code = "too_slow"


class Unauthenticated(RouteStoreError):
    """No API key, or one that the store does not know or no longer takes."""

    code = "unauthenticated"


class Forbidden(RouteStoreError):
    """An API key without the scope, or of another namespace."""

    code = "forbidden"


class LimitReached(RouteStoreError):
    """A trajectory that holds as much as one may; sending it again changes nothing."""

    code = "limit_reached"


class RateLimited(RouteStoreError):
    """An API key that asks for more at one time than one key may; try again."""

    code = "rate_limited"


class StoreFull(RouteStoreError):
    """The engine behind the store has no room; what is stored stays."""

    code = "store_full"


class StoreUnavailable(RouteStoreError):
    """The engine behind the store is away, loading or read-only; try again."""

    code = "unavailable"


class TransportError(RouteReplayError):
    """No answer came from the store."""

    code = "transport"


class StoreUnreachable(TransportError):
    """The connection to the store failed."""

    code = "unreachable"


class StoreTimeout(TransportError):
    """The store did not answer in time."""

    code = "timeout"


HTTP_STATUS: dict[type[RouteReplayError], int] = {
    UnsupportedWireVersion: 400,
    MalformedFrame: 400,
    InvalidRoutes: 422,
    InvalidIdentifier: 400,
    CorruptRecord: 502,
    NotFound: 404,
    RoutesPending: 404,
    RoutesExpired: 404,
    RoutesDeleted: 404,
    RoutesDropped: 404,
    RecordConflict: 409,
    UploadIncomplete: 409,
    ParentMismatch: 409,
    ParentLost: 409,
    BadRequest: 400,
    TooLarge: 413,
    LengthRequired: 411,
    HeadersTooLarge: 431,
    RequestTooSlow: 408,
    Unauthenticated: 401,
    Forbidden: 403,
    LimitReached: 429,
    RateLimited: 429,
    StoreFull: 503,
    StoreUnavailable: 503,
}
"""Status of each error that the store may answer with; the client reads it backwards."""

_BY_CODE = {cls.code: cls for cls in HTTP_STATUS}

RETRYABLE_CODES = frozenset(
    {StoreFull.code, StoreUnavailable.code, RequestTooSlow.code, RateLimited.code}
)
"""Answers after which the same bytes may be sent again."""


def error_from_wire(code: str, message: str, details: dict[str, Any]) -> RouteReplayError:
    """Return the error that `code` names; an unknown code becomes a `RouteStoreError`."""
    return _BY_CODE.get(code, RouteStoreError)(message, **details)
