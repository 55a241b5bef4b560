"""What every route here does around its own work: parse the body, name the request, answer errors in OpenAI's form."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from edgesmith.errors import EdgesmithError, UnsupportedError
from serve.errors import MalformedError
from serve.http.message import Handler, Request
from serve.http.router import Route
from serve.json_text import parse_json
from serve.models.text_model import TextModel
from serve.protocols.identity import request_id
from serve.protocols.openai.errors import ParameterError, error_body, error_response
from serve.protocols.openai.fields import Fields
from serve.protocols.rows import Call, ClientGoneError, choose_model
from serve.protocols.workers import LARGE_BODY_BYTES, workers
from serve.service import Service

__all__ = ["PROTOCOL", "Asked", "Prepare", "Run", "json_body", "make_call", "make_route", "writing_model"]

PROTOCOL = "openai"
_MAX_BODY_BYTES = 4 << 20  # more than any context holds
Run: TypeAlias = Callable[[], Awaitable[None]]
"""Hands a prepared request to its model, which counts it, and answers."""
Prepare: TypeAlias = Callable[[Service, Request, "Asked"], Awaitable[Run]]
"""Checks a request, without anything being counted yet."""


@dataclass(slots=True)
class Asked:
    """What is known of a request when it fails.

    Attributes:
        model: Whose it is, as soon as that is read.
    """

    model: str | None = None


def make_route(
    service: Service, method: str, pattern: str, prepare: Prepare, *, max_body_bytes: int = _MAX_BODY_BYTES
) -> Route:
    """A route whose errors are in OpenAI's form."""

    async def handle(request: Request) -> None:
        asked = Asked()
        try:
            run = await prepare(service, request, asked)
        except ClientGoneError:
            return
        except EdgesmithError as error:
            service.failed(asked.model, PROTOCOL, error, received_ns=request.received_ns)
            request.respond(error_response(error))
            return
        try:
            await run()
        except ClientGoneError:
            return
        except EdgesmithError as error:
            request.respond(error_response(error))

    handler: Handler = handle
    return Route(method, pattern, handler, "user", PROTOCOL, error_body, max_body_bytes)


async def json_body(service: Service, request: Request) -> Any:
    """The body, parsed.

    Raises:
        MalformedError: It is no JSON, or too deep.
    """
    if not len(request.body):
        raise MalformedError("the body is empty", mend="Send a JSON object.")
    body, most = request.body, service.limits.max_json_depth
    if len(body) > LARGE_BODY_BYTES:
        return await workers().run(lambda: parse_json(body, max_depth=most))
    return parse_json(body, max_depth=most)


def make_call(service: Service, request: Request, fields: Fields, asked: Asked) -> Call:
    """Who is asked, by the field `model`."""
    name, version = fields.model()
    asked.model = name
    return Call(service, request, PROTOCOL, request_id(request), name, version)


def writing_model(call: Call) -> TextModel:
    """The language model that is asked.

    Raises:
        ParameterError: The model writes no text.
        RequestError: There is no such model, or it is not ready.
    """
    model = choose_model(call)
    if not isinstance(model, TextModel) or not model.can_generate:
        raise ParameterError(
            f"the model {call.name!r} writes no text",
            param="model",
            mend=f"Ask /predict/{call.name}, or /v1/embeddings for vectors.",
        )
    return model


def unsupported(error: UnsupportedError, param: str) -> ParameterError:
    """An engine's refusal, with the parameter that it is about."""
    return ParameterError(error.message, param=param, mend=error.mend)
