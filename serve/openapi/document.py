"""Put the document together: every route that is there, with what is known of it.

Source: OpenAPI Specification 3.1.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from edgesmith import __version__
from serve.config import Limits
from serve.http.router import Route
from serve.openapi.operations import OPERATIONS
from serve.openapi.parts import JSON, Operation, Schema, ref, text
from serve.openapi.schemas import all_schemas

__all__ = ["describe", "missing_operations"]

_ERRORS: Mapping[str, str] = {"oip": "OipError", "openai": "OpenAIError", "predict": "PredictError"}
"""Protocol → schema of its errors."""
_ALWAYS = {
    400: "The request cannot be obeyed.",
    408: "It came too slowly.",
    413: "It is above a limit.",
    414: "Its URL is too long.",
    417: "It expects something unknown.",
    431: "Its headers are above a limit.",
    503: "Not now; `Retry-After` may say when.",
}
_GUARDED = {
    401: "No key, or a wrong one.",
    403: "Switched off, or sent by a foreign web page.",
    421: "The header `Host` names another server.",
}
_NAMES: Mapping[str, Schema] = {
    "model": text("Name of a model.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,255}$"),
    "version": text("Version of it.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"),
    "region": text("Name of a region of shared memory.", minLength=1),
}


def describe(
    routes: Iterable[Route], *, limits: Limits | None = None, has_keys: bool = False, has_admin: bool = False
) -> dict[str, Any]:
    """Write the document.

    Args:
        routes: All of the server's.
        limits: Of the server, for the bounds of what may be asked.
        has_keys: Whether users need a key.
        has_admin: Whether there is an admin's token; without it no credentials open the admin's routes.
    """
    needed: dict[str, list[dict[str, list[str]]]] = {
        "open": [],
        "user": [{"key": []}] if has_keys else [],
        "admin": [{"admin": []}] if has_admin else [],
    }
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.pattern, {})[route.method.lower()] = _operation(route) | {
            "security": needed[route.access]
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgesmith server",
            "version": __version__,
            "description": "Open Inference Protocol, OpenAI's routes, tasks, metrics.",
        },
        "servers": [{"url": "/"}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": all_schemas((limits or Limits()).max_tokens),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key."},
                "admin": {"type": "http", "scheme": "bearer", "description": "The admin's token."},
            },
        },
    }


def missing_operations(routes: Iterable[Route]) -> list[str]:
    """Routes of which nothing is known but their path."""
    return [name for route in routes if (name := f"{route.method} {route.pattern}") not in OPERATIONS]


def _operation(route: Route) -> dict[str, Any]:
    name = f"{route.method} {route.pattern}"
    known = OPERATIONS.get(name) or Operation(summary=name, tag=route.protocol, answers={})
    said: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", name.lower()).strip("_"),
        "summary": known.summary,
        "tags": [known.tag],
        "parameters": _parameters(route, known),
        "responses": _responses(route, known),
    }
    if known.description:
        said["description"] = known.description
    if known.body is not None:
        said["requestBody"] = {"required": known.is_body_required, "content": _content(known.body)}
    return said


def _parameters(route: Route, known: Operation) -> list[dict[str, Any]]:
    in_path = re.findall(r"\{(\w+)\}", route.pattern)
    found = [{"name": name, "in": "path", "required": True, "schema": _NAMES.get(name, text())} for name in in_path]
    found += [{"name": name, "in": "query", "schema": schema} for name, schema in known.query.items()]
    return found + [{"name": name, "in": "header", "schema": schema} for name, schema in known.headers.items()]


def _responses(route: Route, known: Operation) -> dict[str, Any]:
    statuses = dict(_ALWAYS)
    if route.access != "open":
        statuses |= _GUARDED
    if "{" in route.pattern:
        statuses[404] = "There is no such model, version or path."
    if known.body is not None and "model" not in route.pattern:
        statuses[404] = "There is no such model."
    statuses |= known.statuses
    own, plain = ref(_ERRORS.get(route.protocol, "Error")), ref("Error")
    # What goes wrong before the path is known has no protocol's form.
    error = _content({JSON: own if own == plain else {"anyOf": [own, plain]}})
    answers = {str(status): {"description": text, "content": error} for status, text in sorted(statuses.items())}
    if known.answers:
        answers = {"200": {"description": "Done.", "content": _content(known.answers)}, **answers}
    if route.pattern == "/":
        answers["304"] = {"description": "As it was when it was asked for before."}
    if "ready" in known.answers.get(JSON, {}).get("$ref", "").lower():
        answers["503"]["content"] = _content(known.answers)
    return answers


def _content(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    return {kind: {"schema": schema} for kind, schema in schemas.items()}
