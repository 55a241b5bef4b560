"""Who may ask for what: API keys, the admin's token, and whose web pages may reach a server on loopback."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from edgesmith.errors import UsageError
from serve.errors import ForbiddenError, RequestError, UnauthorizedError
from serve.http.message import Headers
from serve.http.router import AccessLevel

__all__ = ["Access", "MisdirectedError", "is_loopback", "parse_keys", "read_keys", "read_keys_variable"]

GetHeader: TypeAlias = Callable[[bytes], "bytes | None"]

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_MAX_REMEMBERED_HOSTS = 64
_EXPOSED = (
    b"access-control-expose-headers",
    b"inference-header-content-length, retry-after, x-model-version, x-request-id",
)


class MisdirectedError(RequestError):
    """The request names a host that this server is not."""

    status = 421
    reason = "wrong_host"


class Access:
    """Decides from a request's headers, before its body is read.

    Args:
        api_keys: With any, routes for users ask for one of them (or the admin's token).
        admin_token: Opens the routes for admins; None switches these off.
        hosts: The only names, without port, that the header `Host` may give: against web pages whose own name
            is made to point to this machine (DNS rebinding). None lets every name pass.
        origins: Web pages, such as `https://example.org`, whose scripts may send requests that change something;
            those of this server's own pages always may.

    Attributes:
        has_origins: Whether there are any such pages.
    """

    def __init__(
        self,
        *,
        api_keys: Iterable[str] = (),
        admin_token: str | None = None,
        hosts: Iterable[str] | None = None,
        origins: Iterable[str] = (),
    ) -> None:
        self._keys = tuple(_digest(key.encode()) for key in api_keys)
        self._admin = None if admin_token is None else _digest(admin_token.encode())
        self._hosts = None if hosts is None else frozenset(host.lower().strip("[]") for host in hosts)
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self.has_origins = bool(self._origins)
        self._good_hosts: set[bytes] = set()  # values of the header that have passed, so that they pass quickly

    @classmethod
    def for_host(
        cls,
        host: str,
        *,
        api_keys: Iterable[str] = (),
        admin_token: str | None = None,
        allowed_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
    ) -> Access:
        """What fits a server bound to `host`: on loopback only its names and `allowed_hosts` pass."""
        hosts = (*_LOOPBACK_NAMES, host, *allowed_hosts) if is_loopback(host) else None
        return cls(api_keys=api_keys, admin_token=admin_token, hosts=hosts, origins=allowed_origins)

    def check(self, level: AccessLevel, method: str, header: GetHeader) -> None:
        """Pass, or raise what the client is told. Routes that are open always pass.

        Args:
            level: The route's.
            method: In upper case.
            header: Gives a header's value by its name in lower case.

        Raises:
            MisdirectedError: The header `Host` names another server.
            ForbiddenError: A foreign web page sends this, or admin routes are off.
            UnauthorizedError: No key, or a wrong one.
        """
        if level == "open":
            return
        if self._hosts is not None:
            self._check_host(header(b"host") or b"")
        if method not in _SAFE_METHODS:
            origin = header(b"origin")
            if origin is not None:
                self._check_origin(origin, header(b"host") or b"")
        if level == "admin":
            self._check_admin(header)
        elif self._keys:
            self._check_key(header)

    def cross_origin(self, origin: bytes | None) -> Headers:
        """Headers by which a browser lets a web page of a listed origin read an answer; none for all others."""
        if origin is None or origin.decode("latin-1").lower() not in self._origins:
            return ()
        return ((b"access-control-allow-origin", origin), _EXPOSED, (b"vary", b"origin"))

    def _check_host(self, value: bytes) -> None:
        if value in self._good_hosts:
            return
        name = _host_name(value)
        if name is None or self._hosts is None or name not in self._hosts:
            raise MisdirectedError(
                f"this server is not {_shown(value)}",
                mend="Call it localhost or 127.0.0.1, or start it with this name as an allowed host.",
            )
        if len(self._good_hosts) < _MAX_REMEMBERED_HOSTS:
            self._good_hosts.add(value)

    def _check_origin(self, origin: bytes, host: bytes) -> None:
        text = origin.decode("latin-1").lower()
        own = {f"http://{host.decode('latin-1').lower()}", f"https://{host.decode('latin-1').lower()}"}
        if text not in own and text not in self._origins:
            raise ForbiddenError(
                f"a web page of {_shown(origin)} may not send this request",
                mend="Start the server with this page as an allowed origin if it is yours.",
            )

    def _check_admin(self, header: GetHeader) -> None:
        if self._admin is None:
            raise ForbiddenError(
                "routes that change the server are switched off", mend="Start the server with an admin token."
            )
        if not hmac.compare_digest(_digest(_given_key(header)), self._admin):
            raise UnauthorizedError("this route asks for the admin token", mend="Send Authorization: Bearer TOKEN.")

    def _check_key(self, header: GetHeader) -> None:
        given = _digest(_given_key(header))
        is_known = self._admin is not None and hmac.compare_digest(given, self._admin)
        for key in self._keys:  # all of them, so that the time does not tell which one was near
            is_known |= hmac.compare_digest(given, key)
        if not is_known:
            raise UnauthorizedError(
                "this route asks for an API key", mend="Send Authorization: Bearer KEY or x-api-key: KEY."
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`.

    >>> is_loopback("127.0.0.1"), is_loopback("[::1]"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    name = host.strip("[]").lower()
    return name in ("localhost", "::1") or name.startswith("127.")


def parse_keys(text: str, *, source: str) -> tuple[str, ...]:
    r"""Keys of a text with one a line; empty lines and lines that begin with `#` are left out.

    Args:
        text: The lines.
        source: Where they come from, for messages.

    Raises:
        UsageError: There is no key, or one that no header can carry.

    >>> parse_keys("# team a\nk-123\n", source="keys.txt")
    ('k-123',)
    """
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(
                f"line {number} of {source} holds no key", mend="Write one key a line, in ASCII and without spaces."
            )
        keys.append(key)
    if not keys:
        raise UsageError(f"{source} holds no key", mend="Write one key a line; lines that begin with # are comments.")
    return tuple(keys)


def read_keys(path: Path) -> tuple[str, ...]:
    """Keys of a file, as `parse_keys` reads them.

    Raises:
        UsageError: The file cannot be read, holds no key, or can be read or written by everybody on this machine.
    """
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if os.name == "posix" and mode & (stat.S_IROTH | stat.S_IWOTH):
                raise UsageError(
                    f"{path} can be read or written by everybody (mode {stat.S_IMODE(mode):04o})",
                    mend=f"chmod o= {path}",
                )
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return parse_keys(text, source=str(path))


def read_keys_variable(name: str) -> tuple[str, ...]:
    """Keys of an environment variable, as `parse_keys` reads them; commas separate them too.

    Raises:
        UsageError: The variable is not set, or holds no key.
    """
    text = os.environ.get(name)
    if text is None:
        raise UsageError(f"the environment variable {name} is not set")
    return parse_keys(text.replace(",", "\n"), source=f"the environment variable {name}")


def _digest(key: bytes) -> bytes:
    """Hashed first, so that comparing takes as long whatever the lengths are."""
    return hashlib.sha256(key).digest()


def _given_key(header: GetHeader) -> bytes:
    authorization = header(b"authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() == b"bearer":
            return token.strip()
    return header(b"x-api-key") or b""


def _host_name(value: bytes) -> str | None:
    """Name of a header `Host`, without port and brackets; None when it is not one."""
    try:
        parts = urlsplit(f"//{value.decode('ascii')}")
        _ = parts.port  # raises when it is no number
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))
