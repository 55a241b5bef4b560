"""Errors as gRPC's status codes."""

from __future__ import annotations

from http import HTTPStatus

import grpc

from serve.errors import DeadlineError, OverloadedError, describe_failure

__all__ = ["status_of"]

_CODES: dict[int, grpc.StatusCode] = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.MISDIRECTED_REQUEST: grpc.StatusCode.PERMISSION_DENIED,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """Code and message of whatever went wrong with a request.

    A full queue is RESOURCE_EXHAUSTED and not UNAVAILABLE: the latter is what clients try again at once, several times,
    which is the last thing that an overloaded server needs.
    """
    status, _, message = describe_failure(error)
    match error:
        case DeadlineError():
            return grpc.StatusCode.DEADLINE_EXCEEDED, message
        case OverloadedError():
            return grpc.StatusCode.RESOURCE_EXHAUSTED, message
        case _:
            return _CODES.get(status, grpc.StatusCode.INTERNAL), message
