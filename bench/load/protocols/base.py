"""What every protocol has: a way to make requests beforehand, and a check of every answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

__all__ = ["AnswerError", "Checker", "Header", "StreamReader", "check_status", "read_json_object"]

Header = Callable[[str], Any]
"""Name → value of an answer's header, or None."""


class AnswerError(Exception):
    """A request that failed, by the name under which it is counted.

    Args:
        name: Short and without figures, such as `time-out` or `http 503`.
        detail: What this one was, for the sample message.
    """

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name
        self.detail = detail


class StreamReader(Protocol):
    """Takes one streamed answer as it comes."""

    token_ns: list[int]
    """When each piece of text came, as given to `feed`; empty pieces are none."""
    num_tokens: int | None
    """How many tokens the server says that they hold; None if it does not say."""

    def feed(self, data: bytes, now_ns: int) -> None:
        """Take the next bytes, cut anywhere."""

    def finish(self) -> None:
        """Say that the answer is over.

        Raises:
            AnswerError: It is not a right one.
        """


class Checker(Protocol):
    """Says whether answers are right."""

    def open_stream(self, index: int) -> StreamReader | None:
        """Give what reads the answer to request `index`; None if it comes in one piece."""

    def check(self, index: int, status: int, header: Header, body: bytes) -> None:
        """Check the answer to request `index`; of a stream, one that has an error's status.

        Raises:
            AnswerError: It is not a right one.
        """


def check_status(status: int, body: bytes) -> None:
    """Refuse every status but 200.

    Raises:
        AnswerError: Named `http NNN`, with the begin of the body.
    """
    if status != 200:
        said = " ".join(body[:300].decode(errors="replace").split())
        raise AnswerError(f"http {status}", said or "no body")


def read_json_object(body: bytes) -> dict[str, Any]:
    """Read an answer's JSON object, without NaN and infinity.

    Raises:
        AnswerError: It is none.
    """
    try:
        value = _DECODER.decode(body.decode())
    except (ValueError, RecursionError) as error:
        begin = body[:80].decode(errors="replace")
        raise AnswerError("not JSON", f"{error}: {begin!r}") from error
    if not isinstance(value, dict):
        raise AnswerError("not JSON", f"a JSON {type(value).__name__} instead of an object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
