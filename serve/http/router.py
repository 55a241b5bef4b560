"""Which handler answers which path."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from serve.errors import RequestError
from serve.http.message import Handler, Response

__all__ = ["AccessLevel", "ErrorBody", "MethodNotAllowedError", "PathNotFoundError", "Route", "Router"]

AccessLevel: TypeAlias = Literal["open", "user", "admin"]
ErrorBody: TypeAlias = Callable[[int, str, str], Response]
"""Makes an error answer in a protocol's own form of status, reason (as metrics count it) and message."""


_MAX_UNASKED_BYTES = 64 << 10
"""Of a body that nobody reads, or that comes without a key."""


class PathNotFoundError(RequestError):
    """No route has this path."""

    status = 404
    reason = "no_route"


class MethodNotAllowedError(RequestError):
    """The path is there, but not for this method.

    Attributes:
        allow: The methods it is there for, as the header `Allow` lists them.
    """

    status = 405
    reason = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path.

    Attributes:
        method: In upper case. A route of GET answers HEAD too.
        pattern: Such as `/v2/models/{model}/infer`; a name in braces takes one whole segment.
        handler: Answers.
        access: `open` to everybody, to users (who need a key where keys are configured) or to admins.
        protocol: The name that metrics count by.
        error_body: Makes error answers; None answers `{"error": message}`.
        max_body_bytes: A narrower limit than the server's; None takes the server's. Routes of GET and those that
            are open to everybody take at most 64 KiB whatever this says.
    """

    method: str
    pattern: str
    handler: Handler
    access: AccessLevel = "user"
    protocol: str = "http"
    error_body: ErrorBody | None = None
    max_body_bytes: int | None = None

    def limit_body(self, most: int) -> int:
        """The most bytes that a body may have, of a server that takes `most`."""
        if self.max_body_bytes is not None:
            most = min(most, self.max_body_bytes)
        if self.access == "open" or self.method in ("GET", "HEAD"):
            most = min(most, _MAX_UNASKED_BYTES)
        return most


@dataclass(slots=True)
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    parameter: _Node | None = None
    routes: dict[str, tuple[Route, tuple[str, ...]]] = field(default_factory=dict)  # method → route, names in its path


class Router:
    """Finds routes by method and path; literal segments win over parameters.

    Raises:
        ValueError: Two routes have the same method and path, or a pattern does not begin with a slash.

    >>> router = Router([Route("GET", "/v2/models/{model}", print)])
    >>> router.find("GET", "/v2/models/news")[1]
    {'model': 'news'}
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._root = _Node()
        for route in self.routes:
            self._add(route)

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route of a path that is already percent-decoded, and what its pattern's names stand for.

        A slash at the end makes no difference.

        Raises:
            PathNotFoundError: There is none.
            MethodNotAllowedError: There is one, but for other methods.
        """
        segments = path[1:].rstrip("/").split("/") if len(path) > 1 else []
        values: list[str] = []
        node = _descend(self._root, segments, 0, values)
        if node is None:
            raise PathNotFoundError(f"there is nothing at {path[:200]!r}")
        found = node.routes.get(method)
        if found is None and method == "HEAD":
            found = node.routes.get("GET")
        if found is None:
            allow = self._allow(node)
            raise MethodNotAllowedError(f"{path[:200]} answers {allow}, not {method}", allow=allow)
        route, names = found
        return route, dict(zip(names, values, strict=True))

    def _add(self, route: Route) -> None:
        if not route.pattern.startswith("/"):
            raise ValueError(f"pattern {route.pattern!r} does not begin with a slash")
        node, names = self._root, []
        for segment in route.pattern[1:].split("/") if len(route.pattern) > 1 else []:
            if segment.startswith("{") and segment.endswith("}"):
                names.append(segment[1:-1])
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        if route.method in node.routes:
            raise ValueError(f"two routes answer {route.method} {route.pattern}")
        node.routes[route.method] = (route, tuple(names))

    @staticmethod
    def _allow(node: _Node) -> str:
        methods = {*node.routes, "OPTIONS"} | ({"HEAD"} if "GET" in node.routes else set())
        return ", ".join(sorted(methods))


def _descend(node: _Node, segments: list[str], index: int, values: list[str]) -> _Node | None:
    """The node of a path, `values` filled with what its parameters stand for; None when there is none."""
    if index == len(segments):
        return node if node.routes else None
    segment = segments[index]
    literal = node.literals.get(segment)
    if literal is not None:
        found = _descend(literal, segments, index + 1, values)
        if found is not None:
            return found
    if node.parameter is not None and segment:
        values.append(segment)
        found = _descend(node.parameter, segments, index + 1, values)
        if found is not None:
            return found
        values.pop()
    return None
