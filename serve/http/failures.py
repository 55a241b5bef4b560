"""What goes wrong with a request before a handler sees it, and how errors become answers."""

from __future__ import annotations

import json
import logging

from serve.errors import OverloadedError, RequestError, describe_failure
from serve.http.message import Response
from serve.http.router import MethodNotAllowedError, Route

__all__ = [
    "ExpectationError",
    "HeadersTooLargeError",
    "RequestTimeoutError",
    "TooManyConnectionsError",
    "UrlTooLongError",
    "answer_failure",
    "tell_failure",
]

_LOG = logging.getLogger(__name__)


class RequestTimeoutError(RequestError):
    """Headers or a body that came too slowly."""

    status = 408
    reason = "timeout"


class UrlTooLongError(RequestError):
    """A URL above the limit."""

    status = 414
    reason = "url_too_long"


class ExpectationError(RequestError):
    """A header `Expect` that asks for something unknown."""

    status = 417
    reason = "expectation"


class HeadersTooLargeError(RequestError):
    """Headers above the limit, in bytes or in number."""

    status = 431
    reason = "headers_too_large"


class TooManyConnectionsError(OverloadedError):
    """As many clients are connected as may be."""

    reason = "connections"


def tell_failure(error: BaseException) -> tuple[int, str, str]:
    """Status, reason and message of a failure, as `describe_failure` has them, with what mends it on the same line.

    >>> tell_failure(RequestError("the body is empty", mend="Send JSON."))
    (400, 'bad_request', 'the body is empty; Send JSON.')
    """
    status, reason, message = describe_failure(error)
    return status, reason, message.replace("\n  → ", "; ")


def answer_failure(error: BaseException, route: Route | None) -> Response:
    """The answer that tells a client of `error`, in the form of its route's protocol.

    What no client may see is logged with its traceback.
    """
    status, reason, message = tell_failure(error)
    if status == 500:
        where = "a request" if route is None else f"{route.method} {route.pattern}"
        _LOG.error("%s failed", where, exc_info=error)
    make = _plain_body if route is None or route.error_body is None else route.error_body
    try:
        response = make(status, reason, message)
    except Exception:  # noqa: BLE001  a protocol's bug must not leave the client without an answer
        _LOG.exception("the error answer of %s failed", "" if route is None else route.pattern)
        response = _plain_body(status, reason, message)
    extra: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, OverloadedError):
        extra = ((b"retry-after", b"%d" % error.retry_after_s),)
    elif isinstance(error, MethodNotAllowedError):
        extra = ((b"allow", error.allow.encode()),)
    elif status == 401:
        extra = ((b"www-authenticate", b"Bearer"),)
    present = {name for name, _ in response.headers}
    extra = tuple(header for header in extra if header[0] not in present)
    if not extra:
        return response
    return Response(response.status, response.body, response.content_type, (*response.headers, *extra))


def _plain_body(status: int, _reason: str, message: str) -> Response:
    return Response(status, json.dumps({"error": message}).encode())
