"""The messages of a conversation, checked and written as chat templates know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve.protocols.openai.errors import ParameterError
from serve.protocols.openai.fields import kind_of, wrong_type

__all__ = ["read_messages"]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEMPLATE_ROLES: Mapping[str, str] = {"developer": "system"}  # what it was called before, and templates know
_KEPT = ("name", "tool_call_id", "tool_calls")
_EMPTY = frozenset({"audio", "function_call", "refusal", "annotations"})
_MAX_MESSAGES = 4096
_MAX_PARTS = 16384
_PART_TEXTS: Mapping[str, str] = {"text": "text", "refusal": "refusal"}


def read_messages(value: Any) -> list[dict[str, Any]]:
    """Check messages, and put texts that come in parts together.

    Raises:
        ParameterError: Something is missing, of a wrong type, or no text; the parameter names the place.
    """
    if value is None:
        raise ParameterError("you must provide messages", param="messages", code="missing_parameter")
    if not isinstance(value, list):
        raise wrong_type("messages", value, "a list of objects")
    if not 1 <= len(value) <= _MAX_MESSAGES:
        raise ParameterError(f"messages has {len(value)} of them; 1 to {_MAX_MESSAGES} are taken", param="messages")
    num_parts = sum(len(content) for one in value if isinstance(content := _content_of(one), list))
    if num_parts > _MAX_PARTS:
        raise ParameterError(
            f"the messages have {num_parts:,} parts; at most {_MAX_PARTS:,} are taken", param="messages"
        )
    return [_read_message(message, f"messages[{index}]") for index, message in enumerate(value)]


def _content_of(message: Any) -> Any:
    return message.get("content") if isinstance(message, dict) else None


def _read_message(message: Any, place: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise wrong_type(place, message, "an object")
    role = message.get("role")
    if role not in _ROLES:
        raise ParameterError(
            f"Invalid value: {str(role)[:60]!r}. Supported values are: {', '.join(map(repr, _ROLES))}.",
            param=f"{place}.role",
            code="invalid_value",
        )
    for name, given in message.items():
        if name in _EMPTY and not given:
            continue
        if name not in ("role", "content", *_KEPT):
            raise ParameterError(
                f"{name[:60]!r} in a message is not supported by this server",
                param=f"{place}.{name[:60]}",
                code="unsupported_parameter",
            )
    content = _read_content(message.get("content"), f"{place}.content")
    if content is None and not (role == "assistant" and message.get("tool_calls")):
        raise ParameterError(f"{place} has no content", param=f"{place}.content", code="missing_parameter")
    kept = {name: message[name] for name in _KEPT if message.get(name) is not None}
    return {"role": _TEMPLATE_ROLES.get(role, role), "content": content or "", **kept}


def _read_content(content: Any, place: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(place, content, "a string or a list of parts")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        key = _PART_TEXTS.get(kind) if isinstance(kind, str) else None
        if key is None or not isinstance(part, dict):
            raise ParameterError(
                f"a part of the kind {str(kind)[:60]!r} is not supported by this server; send texts",
                param=f"{place}[{index}].type",
                code="invalid_value",
            )
        if not isinstance(part.get(key), str):
            raise wrong_type(f"{place}[{index}].{key}", part.get(key), "a string")
        texts.append(part[key])
    return "".join(texts)
