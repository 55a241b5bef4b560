"""Pieces of schemas, and what is said of one operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = [
    "BINARY",
    "EVENTS",
    "JSON",
    "Operation",
    "Schema",
    "array",
    "maybe",
    "named",
    "number",
    "record",
    "ref",
    "text",
    "whole",
]

Schema: TypeAlias = dict[str, Any]

JSON = "application/json"
BINARY = "application/octet-stream"
EVENTS = "text/event-stream"


def ref(name: str) -> Schema:
    """A schema of the document's components."""
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str = "", **more: Any) -> Schema:
    """A string."""
    return _described({"type": "string", **more}, description)


def whole(low: int | None = None, high: int | None = None, description: str = "") -> Schema:
    """A whole number; bounds are included."""
    return _described(_bounded({"type": "integer"}, low, high), description)


def number(low: float | None = None, high: float | None = None, description: str = "") -> Schema:
    """A number; bounds are included."""
    return _described(_bounded({"type": "number"}, low, high), description)


def array(items: Schema, **more: Any) -> Schema:
    """A list."""
    return {"type": "array", "items": items, **more}


def maybe(schema: Schema) -> Schema:
    """The same, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def record(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None, **more: Any) -> Schema:
    """An object; fields that are not named may be there too unless `additionalProperties` says otherwise."""
    schema: Schema = {"type": "object", "properties": {**required, **(optional or {})}, **more}
    return schema | ({"required": list(required)} if required else {})


def named(values: Schema) -> Schema:
    """An object whose keys are names."""
    return {"type": "object", "additionalProperties": values}


def _bounded(schema: Schema, low: float | None, high: float | None) -> Schema:
    bounds = {"minimum": low, "maximum": high}
    return schema | {name: value for name, value in bounds.items() if value is not None}


def _described(schema: Schema, description: str) -> Schema:
    return schema | {"description": description} if description else schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is said of one method of one path.

    Attributes:
        summary: In a few words.
        tag: Its group.
        answers: Content type → schema, of an answer that went well.
        body: Content type → schema of what is sent; None for no body.
        is_body_required: Whether it may be left out.
        headers: Name → schema of headers that are read.
        query: Name → schema of what may follow the question mark.
        statuses: Further statuses, beside those that every route of its kind may have.
        description: More, in Markdown.
    """

    summary: str
    tag: str
    answers: Mapping[str, Schema]
    body: Mapping[str, Schema] | None = None
    is_body_required: bool = True
    headers: Mapping[str, Schema] = field(default_factory=dict)
    query: Mapping[str, Schema] = field(default_factory=dict)
    statuses: Mapping[int, str] = field(default_factory=dict)
    description: str = ""
