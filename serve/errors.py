"""Why a request was not answered: one class a cause, with its HTTP status and the name that metrics count it by."""

from __future__ import annotations

from typing import ClassVar

from edgesmith.errors import ArtifactError, DataError, EdgesmithError, UnsupportedError, UsageError

__all__ = [
    "DeadlineError",
    "EngineFailedError",
    "ForbiddenError",
    "MalformedError",
    "ModelNotFoundError",
    "NotReadyError",
    "OverloadedError",
    "RequestError",
    "TooLargeError",
    "UnauthorizedError",
    "describe_failure",
]


class RequestError(EdgesmithError):
    """Root of the errors that a client is told."""

    status: ClassVar[int] = 400
    reason: ClassVar[str] = "bad_request"


class MalformedError(RequestError):
    """A body or header that is not what the protocol says."""

    reason = "malformed"


class TooLargeError(RequestError):
    """A body, batch or text above a limit."""

    status = 413
    reason = "too_large"


class UnauthorizedError(RequestError):
    """No key, or a wrong one."""

    status = 401
    reason = "unauthorized"


class ForbiddenError(RequestError):
    """A route that is switched off, or closed to this key."""

    status = 403
    reason = "forbidden"


class ModelNotFoundError(RequestError):
    """No such model or version."""

    status = 404
    reason = "not_found"


class NotReadyError(RequestError):
    """The model is there, but is being loaded, unloaded or has failed."""

    status = 503
    reason = "not_ready"


class OverloadedError(RequestError):
    """The queue is full.

    Attributes:
        retry_after_s: When there may be room, in whole seconds.
    """

    status = 503
    reason = "queue_full"

    def __init__(self, message: str, *, mend: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message, mend=mend)
        self.retry_after_s = retry_after_s


class DeadlineError(RequestError):
    """The request's time was over before it was answered."""

    status = 503
    reason = "deadline"


class EngineFailedError(RequestError):
    """The engine died or broke on the request; another try may go well."""

    status = 503
    reason = "engine_failed"


def describe_failure(error: BaseException) -> tuple[int, str, str]:
    """Status, reason (for metrics) and message of whatever went wrong with a request.

    >>> describe_failure(OverloadedError("128 requests wait already"))
    (503, 'queue_full', '128 requests wait already')
    """
    match error:
        case RequestError():
            return error.status, error.reason, str(error)
        case UnsupportedError():
            return 400, "unsupported", str(error)
        case UsageError() | DataError():
            return 400, "bad_request", str(error)
        case ArtifactError():
            return 503, "engine_failed", str(error)
        case _:
            return 500, "internal", "an internal error; the server's log has it"
