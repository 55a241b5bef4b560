"""The target of a request's first line: path and query, or a refusal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from serve.errors import MalformedError

__all__ = ["Target", "check_path", "parse_target"]

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes.

    Attributes:
        path: Percent-decoded once.
        query: As it came, without the question mark.
        authority: Host and port of a target that is a whole URL; it counts instead of the header `Host`.
    """

    path: str
    query: str
    authority: bytes | None = None


def parse_target(raw: bytes) -> Target:
    """Split and decode the target of a request.

    Raises:
        MalformedError: It is no path, or one that could mean different things to different servers: an encoded
            slash, `.` or `..`, empty segments, NUL and other control characters, bytes that are not UTF-8.

    >>> parse_target(b"/v2/caf%C3%A9?a=%20")
    Target(path='/v2/café', query='a=%20', authority=None)
    """
    authority = None
    if not raw.startswith(b"/"):
        if raw == b"*":
            return Target("*", "")
        absolute = _ABSOLUTE.fullmatch(raw)
        if absolute is None:
            raise MalformedError("the request's target is no path")
        authority, raw = absolute.group(1), absolute.group(2)
        if not raw.startswith(b"/"):
            raw = b"/" + raw
    if b"#" in raw:
        raise MalformedError("the request's target holds a '#'")
    path_raw, _, query = raw.partition(b"?")
    if b"%" in path_raw:
        if _BAD_ESCAPE.search(path_raw):
            raise MalformedError("the path holds a '%' without two hexadecimal digits")
        if b"%2f" in path_raw.lower():
            raise MalformedError("the path holds an encoded slash")
        path_raw = unquote_to_bytes(path_raw)
    try:
        path = path_raw.decode()
    except UnicodeDecodeError as error:
        raise MalformedError("the path is not UTF-8") from error
    check_path(path)
    return Target(path, query.decode("latin-1"), authority)


def check_path(path: str) -> None:
    """Refuse a decoded path that could mean different things to different servers.

    Raises:
        MalformedError: See `parse_target`.
    """
    if not path.startswith("/"):
        raise MalformedError("the request's target is no path")
    if _CONTROL.search(path):
        raise MalformedError("the path holds a control character or a backslash")
    if "//" in path:
        raise MalformedError("the path has an empty segment ('//')")
    if "/." in path and not {".", ".."}.isdisjoint(path.split("/")):
        raise MalformedError("the path has a segment '.' or '..'")
