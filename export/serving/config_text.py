"""Triton's `config.pbtxt`: protobuf's text format, written and read back strictly, without protobuf.

A message is a dict, a repeated field a list, a map a dict by its keys, an enumeration its value's name. Only the fields
that are written here are known; every other one is an error, so that a slip of the pen is not taken for an extension.

Source: triton-inference-server/common, protobuf/model_config.proto; protobuf.dev, "Text Format Language Specification".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgesmith.errors import ArtifactError

__all__ = ["read_config_text", "write_config_text"]

# Message → field → kind; * is repeated, {} a map from texts to that message. `enum` is written without quotes.
_MESSAGES: Mapping[str, Mapping[str, str]] = {
    "ModelConfig": {
        "name": "string",
        "platform": "string",
        "backend": "string",
        "version_policy": "ModelVersionPolicy",
        "max_batch_size": "int",
        "input": "ModelInput*",
        "output": "ModelOutput*",
        "dynamic_batching": "ModelDynamicBatching",
        "instance_group": "ModelInstanceGroup*",
        "parameters": "ModelParameter{}",
        "model_warmup": "ModelWarmup*",
    },
    "ModelVersionPolicy": {"all": "All"},
    "All": {},
    "ModelInput": {"name": "string", "data_type": "enum", "dims": "int*"},
    "ModelOutput": {"name": "string", "data_type": "enum", "dims": "int*", "label_filename": "string"},
    "ModelDynamicBatching": {"max_queue_delay_microseconds": "int"},
    "ModelInstanceGroup": {"count": "int", "kind": "enum"},
    "ModelParameter": {"string_value": "string"},
    "ModelWarmup": {"name": "string", "batch_size": "int", "inputs": "WarmupInput{}"},
    "WarmupInput": {"data_type": "enum", "dims": "int*", "zero_data": "bool", "input_data_file": "string"},
}
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BOOLS = {"true": True, "false": False}
_PLAIN = {"\\": "\\", '"': '"', "'": "'", "n": "\n", "r": "\r", "t": "\t"}
_TOKEN = re.compile(r'\s+|#[^\n]*|(?P<token>[A-Za-z_][A-Za-z0-9_]*|-?[0-9]+|"(?:[^"\\\n]|\\.)*"|[{}\[\]:,])')
_ESCAPE = re.compile(r"\\([0-7]{3}|.)")


def write_config_text(config: Mapping[str, Any]) -> str:
    """Write a model's configuration.

    >>> print(write_config_text({"name": "news", "input": [{"name": "x", "dims": [-1]}]}), end="")
    name: "news"
    input {
      name: "x"
      dims: [ -1 ]
    }
    """
    return "".join(f"{line}\n" for line in _lines("ModelConfig", config))


def _lines(message: str, values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        kind = _MESSAGES[message][name]
        if kind.endswith("{}"):
            entry = kind.removesuffix("{}")
            for key, inner in value.items():
                content = [f"key: {_quote(key)}", *_block("value", _lines(entry, inner))]
                yield from _block(name, iter(content))
        elif kind.endswith("*") and kind.removesuffix("*") in _MESSAGES:
            for inner in value:
                yield from _block(name, _lines(kind.removesuffix("*"), inner))
        elif kind.endswith("*"):
            yield f"{name}: [ {', '.join(map(str, value))} ]"
        elif kind in _MESSAGES:
            yield from _block(name, _lines(kind, value))
        elif kind == "string":
            yield f"{name}: {_quote(value)}"
        else:
            yield f"{name}: {str(value).lower() if kind == 'bool' else value}"


def _block(name: str, content: Iterator[str]) -> Iterator[str]:
    inner = [f"  {line}" for line in content]
    if not inner:
        yield f"{name} {{ }}"
        return
    yield f"{name} {{"
    yield from inner
    yield "}"


def _quote(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(one, one if one >= " " else f"\\{ord(one):03o}") for one in text) + '"'


def read_config_text(text: str, source: str = "config.pbtxt") -> dict[str, Any]:
    """Read what `write_config_text` writes, in any layout that the text format allows for it.

    Args:
        text: The content.
        source: What it is called in messages.

    Raises:
        ArtifactError: It is no such text, has a field twice, or one that is not known here.
    """
    return _Reader(text, source).read()


class _Reader:
    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._tokens: list[tuple[str, int]] = []
        at, line = 0, 1
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise self._error(f"{text[at : at + 20]!r} is no token", line)
            if found["token"]:
                self._tokens.append((found["token"], line))
            line += found[0].count("\n")
            at = found.end()
        self._tokens.append(("", line))
        self._at = 0

    def read(self) -> dict[str, Any]:
        values = self._message("ModelConfig", "")
        assert self._peek() == ""  # `_message` ends there
        return values

    def _error(self, what: str, line: int | None = None) -> ArtifactError:
        number = self._tokens[self._at][1] if line is None else line
        return ArtifactError(f"{self._source}:{number}: {what}")

    def _peek(self) -> str:
        return self._tokens[self._at][0]

    def _take(self, wanted: str | None = None) -> str:
        token = self._peek()
        if (wanted is not None and token != wanted) or (wanted is None and not token):
            raise self._error(f"{token or 'the end'!r} stands where {wanted or 'a value'!r} belongs")
        self._at += 1
        return token

    def _message(self, message: str, end: str) -> dict[str, Any]:
        """Read fields up to the closing brace, or the end of the text."""
        fields = _MESSAGES[message]
        values: dict[str, Any] = {}
        while self._peek() != end:
            name = self._peek()
            kind = fields.get(name)
            if not name:
                raise self._error(f"the text ends inside {message}")
            if kind is None:
                raise self._error(f"{message} has no field {name!r} here; it has {', '.join(fields)}")
            self._at += 1
            if name in values and not kind.endswith(("*", "{}")):
                raise self._error(f"{message} has {name} twice")
            self._field(name, kind, values)
        if end:
            self._take(end)
        return values

    def _field(self, name: str, kind: str, values: dict[str, Any]) -> None:
        inner = kind.rstrip("*{}")
        is_message = inner in _MESSAGES
        if self._peek() == ":" or not is_message:
            self._take(":")
        found = [self._value(inner, is_map=kind.endswith("{}"))] if self._peek() != "[" else self._list(kind, inner)
        if kind.endswith("*"):
            values.setdefault(name, []).extend(found)
        elif kind.endswith("{}"):
            entries = values.setdefault(name, {})
            for key, value in found:
                if key in entries:
                    raise self._error(f"{name} has the key {key!r} twice")
                entries[key] = value
        else:
            (values[name],) = found

    def _list(self, kind: str, inner: str) -> list[Any]:
        if not kind.endswith(("*", "{}")):
            raise self._error("a list stands where one value belongs")
        found: list[Any] = []
        self._take("[")
        while self._peek() != "]":
            if found:
                self._take(",")
            found.append(self._value(inner, is_map=kind.endswith("{}")))
        self._take("]")
        return found

    def _value(self, kind: str, *, is_map: bool) -> Any:
        if is_map:
            return self._entry(kind)
        if kind in _MESSAGES:
            self._take("{")
            return self._message(kind, "}")
        token = self._take()
        if kind == "string" and token.startswith('"'):
            return _ESCAPE.sub(lambda found: _unescape(found[1]), token[1:-1])
        if kind == "int" and token.lstrip("-").isdigit():
            return int(token)
        if kind == "bool" and token in _BOOLS:
            return _BOOLS[token]
        if kind == "enum" and token[0].isalpha():
            return token
        raise self._error(f"{token!r} is no {kind}")

    def _entry(self, kind: str) -> tuple[str, Any]:
        self._take("{")
        self._take("key")
        self._take(":")
        key = self._value("string", is_map=False)
        self._take("value")
        if self._peek() == ":":
            self._take(":")
        value = self._value(kind, is_map=False)
        self._take("}")
        return key, value


def _unescape(text: str) -> str:
    return chr(int(text, 8)) if len(text) == 3 else _PLAIN.get(text, text)
