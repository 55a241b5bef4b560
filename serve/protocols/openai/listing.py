"""`GET /v1/models` and `/v1/models/{model}`.

Source: OpenAI API reference, "Models".
"""

from __future__ import annotations

import time
from typing import Any

from serve.errors import ModelNotFoundError, RequestError
from serve.http.message import Request, Response
from serve.json_text import dump_json
from serve.protocols.openai.handling import Asked, Run
from serve.service import Service

__all__ = ["list_models", "show_model"]

_STARTED_S = int(time.time())
_OWNER = "edgesmith"


async def list_models(service: Service, request: Request, asked: Asked) -> Run:
    """All models that answer: by name, and by `name:version` where there are several versions."""
    del asked
    data = []
    for name in service.repository.names():
        versions = service.repository.versions(name)
        if versions:
            data.append(_entry(name))
        if len(versions) > 1:
            data.extend(_entry(f"{name}:{version}") for version in versions)
    return _respond(request, {"object": "list", "data": data})


async def show_model(service: Service, request: Request, asked: Asked) -> Run:
    """One model, by `name` or `name:version`."""
    given = request.params["model"]
    name, _, version = given.partition(":")
    asked.model = name
    try:
        service.model(name, version or None)
    except ModelNotFoundError:
        raise
    except RequestError as error:
        raise ModelNotFoundError(f"the model {given[:200]!r} is not ready: {error.message}") from error
    return _respond(request, _entry(given))


def _entry(identity: str) -> dict[str, Any]:
    return {"id": identity, "object": "model", "created": _STARTED_S, "owned_by": _OWNER}


def _respond(request: Request, value: dict[str, Any]) -> Run:
    async def run() -> None:
        request.respond(Response(body=dump_json(value)))

    return run
