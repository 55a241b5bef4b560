"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`.

Source: OpenAI API reference, "Error codes".
"""

from __future__ import annotations

from typing import Any

from serve.errors import ModelNotFoundError, OverloadedError, RequestError
from serve.http.failures import tell_failure
from serve.http.message import Response
from serve.json_text import dump_json

__all__ = ["ParameterError", "error_body", "error_object", "error_response"]

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_exceeded"}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
_OVERLOAD = "queue_full"


class ParameterError(RequestError):
    """A parameter that cannot be obeyed.

    Attributes:
        param: Its name, with the place inside of it, such as `messages[0].role`.
        code: A word that programs compare; None where none fits.
    """

    def __init__(self, message: str, *, param: str, code: str | None = None, mend: str = "") -> None:
        super().__init__(message, mend=mend)
        self.param = param
        self.code = code


def error_object(
    status: int, reason: str, message: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The error as it stands in an answer or in the middle of a stream."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": param,
            "code": code or _CODES.get(status) or (reason if status >= 500 else None),
        }
    }


def error_body(status: int, reason: str, message: str) -> Response:
    """Answer with an error, such as one that came up before any of these routes was asked.

    A full queue is what OpenAI calls too many requests, which its clients try again after the time that is named.
    """
    if reason == _OVERLOAD:
        return _response(429, error_object(429, reason, message), retry_after_s=1)
    return _response(status, error_object(status, reason, message))


def error_response(error: RequestError | Exception) -> Response:
    """Answer with an error of this project."""
    status, reason, message = tell_failure(error)
    match error:
        case OverloadedError():
            return _response(429, error_object(429, reason, message), retry_after_s=error.retry_after_s)
        case ParameterError():
            return _response(status, error_object(status, reason, message, param=error.param, code=error.code))
        case ModelNotFoundError():
            return _response(status, error_object(status, reason, message, param="model", code="model_not_found"))
    return _response(status, error_object(status, reason, message))


def _response(status: int, value: dict[str, Any], *, retry_after_s: int = 0) -> Response:
    headers = ((b"retry-after", str(retry_after_s).encode()),) if retry_after_s else ()
    return Response(status=status, body=dump_json(value), headers=headers)
