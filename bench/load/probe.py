"""Ask a server what it is before loading it: plain requests, one after the other."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bench.load.target import Address
from edgesmith.errors import ServerError, UsageError

__all__ = ["Found", "Server", "split_url"]

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An answer to a question."""

    path: str
    status: int
    value: Any
    """The JSON that it holds; None if it holds none."""

    @property
    def is_ok(self) -> bool:
        """Whether it is a JSON object with status 200."""
        return self.status == http.client.OK and isinstance(self.value, dict)

    @property
    def summary(self) -> str:
        """Such as `GET /v2 → 404`."""
        said = "" if self.status != http.client.OK or self.is_ok else ", no JSON object"
        return f"GET {self.path} → {self.status}{said}"


def split_url(url: str) -> tuple[Address, str]:
    """Split a URL into where the server listens and the path, which has no slash at its end.

    Raises:
        UsageError: It is no HTTP URL.
    """
    mend = "Write it as http://HOST:PORT/v2/models/NAME or http://HOST:PORT/v1."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is no URL: {error}", mend=mend) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is no HTTP URL", mend=mend)
    if parts.username is not None or parts.password is not None:
        raise UsageError("the URL holds a user name or password", mend="Give it as a header: Authorization: …")
    if parts.query or parts.fragment:
        raise UsageError(f"{url!r} has a query or a fragment; requests go to a path", mend="Leave it out.")
    path = parts.path.rstrip("/")
    if not path.isascii() or not path.isprintable() or " " in path:
        raise UsageError(f"{url!r}: the path has characters that a URL has not", mend="Percent-encode them.")
    is_tls = parts.scheme == "https"
    return Address(host=parts.hostname, port=port or (443 if is_tls else 80), is_tls=is_tls), path


class Server:
    """Asks questions of one server and remembers what came back.

    Args:
        address: Where it listens.
        headers: Of every question.
    """

    def __init__(self, address: Address, headers: Mapping[str, str]) -> None:
        self.address = address
        self.headers = dict(headers)
        self.asked: list[Found] = []

    def get(self, path: str) -> Found:
        """Ask with GET.

        Raises:
            ServerError: Nobody listens there, or what listens does not speak HTTP.
        """
        connection = self._connection()
        place = self.address.base
        try:
            connection.request("GET", path or "/", headers={"Accept": "application/json"} | self.headers)
            answer = connection.getresponse()
            body = answer.read(16 << 20)
        except socket.gaierror as error:
            raise ServerError(f"{place}: the host is unknown ({error.strerror})", mend="Check the URL.") from error
        except ConnectionRefusedError as error:
            raise ServerError(f"{place}: nobody listens there", mend="Start the server, or check the port.") from error
        except TimeoutError as error:
            raise ServerError(
                f"{place}: no answer to GET {path or '/'} within {_TIMEOUT_S:g} s",
                mend="See whether the server is stuck or still loading its model.",
            ) from error
        except ssl.SSLError as error:
            raise ServerError(f"{place}: no TLS connection ({error.reason})", mend="Check http or https.") from error
        except (http.client.HTTPException, ConnectionError) as error:
            what = f"{type(error).__name__}: {error}".rstrip(": ")
            raise ServerError(
                f"{place}: it closed the connection or answered GET {path or '/'} with something that is not HTTP "
                f"({what})",
                mend="Check the port, and whether it is http or https.",
            ) from error
        except OSError as error:
            raise ServerError(
                f"{place}: cannot be reached ({error.strerror or error})", mend="Check the URL."
            ) from error
        finally:
            connection.close()
        found = Found(path=path or "/", status=answer.status, value=_json_of(body))
        self.asked.append(found)
        return found

    def post_status(self, path: str, value: Mapping[str, Any]) -> int | None:
        """Ask with POST and JSON; give the answer's status, or None if there is none: the load will say why."""
        connection = self._connection()
        headers = {"Content-Type": "application/json"} | self.headers
        try:
            connection.request("POST", path, body=json.dumps(value).encode(), headers=headers)
            answer = connection.getresponse()
            answer.read(1 << 20)
        except (http.client.HTTPException, OSError):
            return None
        finally:
            connection.close()
        return answer.status

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.address.is_tls else http.client.HTTPConnection
        return kind(self.address.host, self.address.port, timeout=_TIMEOUT_S)

    @property
    def tried(self) -> str:
        """What was asked and what came back, in words."""
        return ", ".join(found.summary for found in self.asked)


def _json_of(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
