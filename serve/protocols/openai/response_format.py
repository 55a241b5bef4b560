"""`response_format`: answers that are JSON, or JSON of a schema, kept by the engine's grammar.

Source: OpenAI API reference, "Structured outputs".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgesmith.errors import UnsupportedError
from serve.protocols.openai.errors import ParameterError
from serve.protocols.openai.fields import Fields, wrong_type
from serve.runtime.json_grammar import json_schema_to_grammar

__all__ = ["read_response_format"]

_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def read_response_format(value: Any) -> Mapping[str, Any] | None:
    """The schema that an answer follows; None for free text.

    A schema is kept whether `strict` is said or not: what the grammar lets through is always of the schema.

    Raises:
        ParameterError: It is of another form, or the schema has what a grammar cannot keep.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type("response_format", value, "an object")
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return _ANY_OBJECT
        case "json_schema":
            return _read_schema(value.get("json_schema"))
    raise ParameterError(
        f"Invalid value: {str(value.get('type'))[:60]!r}. Supported values are: 'text', 'json_object', 'json_schema'.",
        param="response_format.type",
        code="invalid_value",
    )


def _read_schema(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type("response_format.json_schema", value, "an object")
    inner = Fields(value, known={"schema", "strict"}, ignored={"name", "description"})
    inner.flag("strict")
    schema = inner.get("schema")
    if schema is None:
        return _ANY_OBJECT
    if not isinstance(schema, dict):
        raise wrong_type("response_format.json_schema.schema", schema, "an object")
    try:
        json_schema_to_grammar(schema)
    except UnsupportedError as error:
        raise _invalid(error.message, error.mend) from error
    except TypeError as error:  # such as a type that is an object
        raise _invalid("the JSON schema has a keyword whose value is of a wrong type", "") from error
    return schema


def _invalid(message: str, mend: str) -> ParameterError:
    return ParameterError(message, param="response_format.json_schema.schema", code="invalid_json_schema", mend=mend)
