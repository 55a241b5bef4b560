"""Whether a request may be answered, and by which route: decided from its head, before its body is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from serve.access import Access
from serve.config import Limits
from serve.errors import MalformedError, RequestError, TooLargeError
from serve.http.message import Headers, Response
from serve.http.router import MethodNotAllowedError, Route, Router
from serve.http.target import Target, check_path, parse_target

__all__ = ["Admission", "Place"]

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9_, -]{1,2048}")
_MAX_REMEMBERED = 1024
_MAX_REMEMBERED_BYTES = 256


@dataclass(frozen=True, slots=True)
class Place:
    """What a method and a target lead to.

    Attributes:
        route: None when `error` says why there is none.
        params: What the route's pattern found in the path.
        error: Why there is no route.
    """

    target: Target
    route: Route | None
    params: dict[str, str]
    error: RequestError | None = None


class Admission:
    """Finds the route of a request and checks what its head tells; remembers targets that were good.

    Attributes:
        has_origins: Whether there are web pages of other origins that may read answers.
    """

    def __init__(self, router: Router, limits: Limits, access: Access) -> None:
        self._router = router
        self._limits = limits
        self._access = access
        self.has_origins = access.has_origins
        self._places: dict[tuple[str, bytes], Place] = {}
        self._hosts: set[bytes] = set()

    def place(self, method: str, raw: bytes, headers: dict[bytes, bytes]) -> Place:
        """Route of a target as it came. The host of a target that is a whole URL takes the header's place.

        Raises:
            MalformedError: The target or the header `Host` is not acceptable; the connection is then better closed.
        """
        host = headers.get(b"host")
        if host is not None and host not in self._hosts:
            self._check_host(host)
        place = self._find(method, raw)
        if place.target.authority is not None:
            self._check_host(place.target.authority)
            headers[b"host"] = place.target.authority
        return place

    def _find(self, method: str, raw: bytes) -> Place:
        key = (method, raw)
        place = self._places.get(key)
        if place is None:
            place = self.find_target(method, parse_target(raw))
            if place.error is None and len(raw) <= _MAX_REMEMBERED_BYTES:
                if len(self._places) >= _MAX_REMEMBERED:
                    self._places.clear()
                self._places[key] = place
        return place

    def find_decoded(self, method: str, path: str, query: str) -> Place:
        """Route of a path that somebody else has decoded.

        Raises:
            MalformedError: The path is not acceptable.
        """
        check_path(path)
        return self.find_target(method, Target(path, query))

    def find_target(self, method: str, target: Target) -> Place:
        """Route of a target, or the reason why it has none."""
        try:
            route, params = self._router.find(method, target.path)
        except RequestError as error:
            return Place(target, None, {}, error)
        return Place(target, route, params)

    def _check_host(self, host: bytes) -> None:
        """Refuse a header `Host` that no URL could have."""
        if not _HOST.fullmatch(host):
            raise MalformedError("the header Host is no name and port")
        if len(self._hosts) < _MAX_REMEMBERED:
            self._hosts.add(host)

    def check(self, place: Place, method: str, headers: Mapping[bytes, bytes], body_bytes: int) -> None:
        """Refuse what may not be answered.

        Args:
            place: Where the request goes.
            method: In upper case.
            headers: By names in lower case.
            body_bytes: As announced; 0 when unknown.

        Raises:
            RequestError: What the client is told.
        """
        route = place.route
        if route is None:
            assert place.error is not None
            raise place.error
        self._access.check(route.access, method, headers.get)
        limit = self.body_limit(route)
        if body_bytes > limit:
            raise TooLargeError(f"the body has {body_bytes:,} bytes; at most {limit:,} are taken")

    def body_limit(self, route: Route | None) -> int:
        """The most bytes that a body of this route may have."""
        limit = self._limits.max_body_bytes
        return limit if route is None else route.limit_body(limit)

    def cross_origin(self, headers: Mapping[bytes, bytes]) -> Headers:
        """Headers that let a listed web page of another origin read the answer."""
        return self._access.cross_origin(headers.get(b"origin")) if self.has_origins else ()

    def answer_options(self, place: Place, method: str, headers: Mapping[bytes, bytes]) -> Response | None:
        """Answer to an OPTIONS request that has no route of its own; None when it is no such request.

        What browsers ask ahead of a listed web page's request is allowed, with all headers that it wants to send.
        """
        allow = _allowed_methods(place) if method == "OPTIONS" else None
        if allow is None:
            return None
        return Response(204, b"", b"", ((b"allow", allow.encode()), *self._preflight(allow, headers)))

    def _preflight(self, allow: str, headers: Mapping[bytes, bytes]) -> Headers:
        wanted = headers.get(b"access-control-request-headers", b"")
        if b"access-control-request-method" not in headers or not self.cross_origin(headers):
            return ()
        found = [(b"access-control-allow-methods", allow.encode()), (b"access-control-max-age", b"600")]
        if wanted and _HEADER_NAMES.fullmatch(wanted):
            found.append((b"access-control-allow-headers", wanted))
        if headers.get(b"access-control-request-private-network") == b"true":
            found.append((b"access-control-allow-private-network", b"true"))
        return tuple(found)


def _allowed_methods(place: Place) -> str | None:
    """The methods to answer an OPTIONS request with; None when it has a route, or leads nowhere."""
    if place.target.path == "*":
        return "GET, HEAD, OPTIONS, POST"
    return place.error.allow if isinstance(place.error, MethodNotAllowedError) else None
