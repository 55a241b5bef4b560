"""`response_format`: answers that are JSON, or JSON of a schema, kept by the engine's grammar.

Source: OpenAI API reference, "Structured outputs".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgesmith.errors import UnsupportedError
from serve.json_text import dump_json
from serve.protocols.openai.errors import ParameterError
from serve.protocols.openai.fields import Fields, wrong_type
from serve.protocols.workers import workers
from serve.runtime.json_grammar import json_schema_to_grammar

__all__ = ["MAX_GRAMMAR_BYTES", "read_response_format"]

MAX_GRAMMAR_BYTES = 64 << 10
"""Of a schema or grammar: what it takes to turn one into rules grows faster than its size."""

_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


async def read_response_format(value: Any) -> Mapping[str, Any] | None:
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
            return await _read_schema(value.get("json_schema"))
    raise ParameterError(
        f"Invalid value: {str(value.get('type'))[:60]!r}. Supported values are: 'text', 'json_object', 'json_schema'.",
        param="response_format.type",
        code="invalid_value",
    )


async def _read_schema(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type("response_format.json_schema", value, "an object")
    inner = Fields(value, known={"schema", "strict"}, ignored={"name", "description"})
    inner.flag("strict")
    schema = inner.get("schema")
    if schema is None:
        return _ANY_OBJECT
    if not isinstance(schema, dict):
        raise wrong_type("response_format.json_schema.schema", schema, "an object")
    if (size := len(dump_json(schema))) > MAX_GRAMMAR_BYTES:
        raise _invalid(f"the JSON schema has {size:,} bytes; at most {MAX_GRAMMAR_BYTES:,} are taken", "")
    try:
        await workers("prompts").run(lambda: json_schema_to_grammar(schema))
    except UnsupportedError as error:
        raise _invalid(error.message, error.mend) from error
    except TypeError as error:  # such as a type that is an object
        raise _invalid("the JSON schema has a keyword whose value is of a wrong type", "") from error
    return schema


def _invalid(message: str, mend: str) -> ParameterError:
    return ParameterError(message, param="response_format.json_schema.schema", code="invalid_json_schema", mend=mend)
