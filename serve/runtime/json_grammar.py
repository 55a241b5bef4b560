"""Make a grammar of a JSON schema, so that whatever it lets through is JSON of the schema.

A keyword that a grammar cannot keep is refused: an answer that looks valid and is not would be worse.

Source: https://json-schema.org/draft/2020-12/json-schema-validation
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgesmith.errors import UnsupportedError

__all__ = ["json_schema_to_grammar"]

MAX_DEPTH = 48
MAX_NODES = 2000

_SAYS_NOTHING = frozenset({
    "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "examples",
    "readOnly", "title", "writeOnly",
})  # fmt: skip
# Type → keywords that are kept.
_KEYWORDS: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "format"}),
    "integer": frozenset({"minimum"}),
    "number": frozenset({"minimum"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float),
    "boolean": (bool,), "null": (type(None),),
}  # fmt: skip
_BASIC = r"""
space ::= " "?
any ::= any-object | any-array | string | number | boolean | null
any-object ::= "{" space (any-pair ("," space any-pair)* space)? "}"
any-pair ::= string ":" space any
any-array ::= "[" space (any ("," space any)* space)? "]"
string ::= "\"" char* "\""
char ::= [^"\\\x00-\x1F\x7F\U00110000-\U001FFFFF] | "\\" (["\\/bfnrt] | "u" code)
code ::= [0-9a-cA-CefEF] hex{3} | [dD] [0-7] hex{2}
hex ::= [0-9a-fA-F]
number ::= "-"? positive
positive ::= whole ("." [0-9]{1,15})? ([eE] [+-]? [0-9]{1,2})?
integer ::= "-"? natural
natural ::= whole
whole ::= "0" | [1-9] [0-9]{0,15}
boolean ::= "true" | "false"
null ::= "null"
date ::= [0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])
time ::= ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])
uuid ::= hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}
""".strip()
_FORMATS = {"date": "date", "time": "time", "date-time": 'date "T" time', "uuid": "uuid"}


def json_schema_to_grammar(schema: Mapping[str, Any]) -> str:
    """Write a schema as a grammar in llama.cpp's notation (GBNF).

    Properties come in the schema's order, and no others than it names. A date's day is at most the 28th. A blank may
    follow an opening bracket, a comma or a colon, and come before a closing bracket; none follows the whole.

    Args:
        schema: JSON Schema, with references into itself only.

    Raises:
        UnsupportedError: It is damaged, or has a keyword that a grammar cannot keep; the message says where.
    """
    if not isinstance(schema, Mapping):
        raise _refuse("", f"is {type(schema).__name__}, not an object")
    return _Converter(schema).convert()


def _refuse(place: str, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"the JSON schema{f' at {place}' if place else ''} {what}",
        mend="Say it with type, properties, required, items, enum, const, anyOf and lengths, and check the rest "
        "after generating.",
    )


class _Converter:
    """Turns one schema into rules."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.schema = schema
        self.rules: dict[str, str] = {}
        self.references: dict[str, str] = {}
        self.num_nodes = 0

    def convert(self) -> str:
        """The whole grammar."""
        self.references["#"] = "root"
        self.rules["root"] = self.rule(self.schema, "", 0)
        lines = [f"{name} ::= {content}" for name, content in self.rules.items()]
        return "\n".join([*lines, _BASIC]) + "\n"

    def add(self, content: str) -> str:
        """Name a rule."""
        name = f"r{len(self.rules)}"
        self.rules[name] = content
        return name

    def rule(self, schema: Any, place: str, depth: int) -> str:
        """What a schema lets through, as an element of a rule."""
        self.num_nodes += 1
        if depth > MAX_DEPTH or self.num_nodes > MAX_NODES:
            raise _refuse(place, f"is nested more than {MAX_DEPTH} deep or has more than {MAX_NODES} parts")
        if schema is True:
            return "any"
        if not isinstance(schema, Mapping) or not all(isinstance(key, str) for key in schema):
            raise _refuse(place, f"is {schema!r:.40}, not an object")
        said = {key: value for key, value in schema.items() if key not in _SAYS_NOTHING}
        if not said:
            return "any"
        if "$ref" in said:
            self.only(said, {"$ref"}, place)
            return self.reference(said["$ref"], place, depth)
        if "anyOf" in said:
            self.only(said, {"anyOf", "type"}, place)
            options = self.sequence(said["anyOf"], f"{place}/anyOf")
            rules = [self.rule(one, f"{place}/anyOf/{index}", depth + 1) for index, one in enumerate(options)]
            return self.add(" | ".join(rules))
        if "const" in said or "enum" in said:
            return self.constants(said, place)
        self.only(said, {"type"}.union(*_KEYWORDS.values()), place)
        types = said.get("type", self.implied_type(said))
        if isinstance(types, list):
            types = self.sequence(types, f"{place}/type")
            return self.add(" | ".join(self.typed(said, one, place, depth, shared=types) for one in types))
        return self.typed(said, types, place, depth, shared=[types])

    def typed(self, said: Mapping[str, Any], kind: Any, place: str, depth: int, *, shared: Sequence[Any]) -> str:
        """A schema of one type."""
        if not all(isinstance(one, str) for one in shared) or kind not in _KEYWORDS:
            raise _refuse(place, f"has the type {kind!r:.40}; known are {', '.join(_KEYWORDS)}")
        self.only(said, {"type"}.union(*(_KEYWORDS.get(one, frozenset()) for one in shared)), place)
        match kind:
            case "object":
                return self.object(said, place, depth)
            case "array":
                return self.array(said, place, depth)
            case "string":
                return self.string(said, place)
            case "integer" | "number":
                least = said.get("minimum")
                if least not in (None, 0) or isinstance(least, bool):
                    raise _refuse(place, f"has the minimum {least!r:.40}; only 0 can be kept")
                return str(kind) if least is None else {"integer": "natural", "number": "positive"}[kind]
            case _:
                return str(kind)

    def implied_type(self, said: Mapping[str, Any]) -> str:
        """The type that keywords speak of where none is named."""
        found = [kind for kind, keywords in _KEYWORDS.items() if keywords & said.keys()]
        return found[0] if len(found) == 1 else ""

    def only(self, said: Mapping[str, Any], known: set[str], place: str) -> None:
        """Refuse keywords that would be ignored."""
        if unknown := sorted(said.keys() - known):
            raise _refuse(place, f"has {', '.join(map(repr, unknown))}, which a grammar cannot keep")

    def sequence(self, value: Any, place: str) -> list[Any]:
        """A list that is not empty."""
        if not isinstance(value, list) or not value:
            raise _refuse(place, "is no list, or an empty one")
        return value

    def count(self, said: Mapping[str, Any], name: str, place: str) -> int | None:
        """A length."""
        value = said.get(name)
        if value is not None and (type(value) is not int or value < 0):
            raise _refuse(place, f"has {name} {value!r:.40}")
        return value

    def reference(self, target: Any, place: str, depth: int) -> str:
        """A part of the schema by its path."""
        if not isinstance(target, str) or not re.fullmatch(r"#(/[^/]+)*", target):
            raise _refuse(place, f"refers to {target!r:.60}; only `#/…` can be followed")
        if target not in self.references:
            found: Any = self.schema
            for part in target.split("/")[1:]:
                key = part.replace("~1", "/").replace("~0", "~")
                found = found.get(key) if isinstance(found, Mapping) else None
            if found is None:
                raise _refuse(place, f"refers to {target!r:.60}, which is not there")
            name = self.references[target] = self.add("")
            self.rules[name] = self.rule(found, target, depth + 1)
        return self.references[target]

    def constants(self, said: Mapping[str, Any], place: str) -> str:
        """One of some values."""
        self.only(said, {"const", "enum", "type"}, place)
        values = [said["const"]] if "const" in said else self.sequence(said["enum"], f"{place}/enum")
        kinds = said.get("type")
        for kind in kinds if isinstance(kinds, list) else [kinds] if kinds else []:
            for value in values:
                is_wrong_bool = isinstance(value, bool) and kind != "boolean"
                if is_wrong_bool or not isinstance(value, _PYTHON_TYPES.get(str(kind), ())):
                    raise _refuse(place, f"has the value {value!r:.40}, which is not of the type {kind!r:.40}")
        return self.add("(" + " | ".join(_literal(value, place) for value in values) + ")")

    def object(self, said: Mapping[str, Any], place: str, depth: int) -> str:
        """An object: named properties in order, or any names with values of one kind."""
        properties, required = said.get("properties", {}), said.get("required", [])
        is_named = isinstance(required, list) and all(isinstance(name, str) for name in required)
        if not is_named or not isinstance(properties, Mapping) or not all(isinstance(name, str) for name in properties):
            raise _refuse(place, "has properties or required of another kind than an object and a list of names")
        more = said.get("additionalProperties", True)
        if missing := [name for name in required if name not in properties]:
            if more is False:
                raise _refuse(place, f"requires {missing[0]!r:.40}, which it does not allow")
            properties = {**properties, **dict.fromkeys(missing, more)}
        if not properties:
            if more is False:
                return self.add('"{" space "}"')
            value = self.rule(more, f"{place}/additionalProperties", depth + 1)
            pair = self.add(f'string ":" space {value}')
            return self.add(f'"{{" space ({pair} ("," space {pair})* space)? "}}"')
        pairs = []
        for name, schema in properties.items():
            value = self.rule(schema, f"{place}/properties/{name}", depth + 1)
            pairs.append((self.add(f'{_literal(name, place)} ":" space {value}'), name in required))
        return self.add(f'"{{" space {self.members(pairs)} "}}"')

    def members(self, pairs: Sequence[tuple[str, bool]]) -> str:
        """Pairs in order with commas between them, where some may be left out."""
        rest, first = self.add("space"), self.add('""')
        for pair, is_required in reversed(pairs):
            if is_required:
                first = self.add(f"{pair} {rest}")
                rest = self.add(f'"," space {pair} {rest}')
            else:
                first = self.add(f"{pair} {rest} | {first}")
                rest = self.add(f'("," space {pair})? {rest}')
        return first

    def array(self, said: Mapping[str, Any], place: str, depth: int) -> str:
        """A list: some items of their own kinds, or a number of one kind."""
        least, most = self.count(said, "minItems", place) or 0, self.count(said, "maxItems", place)
        if "prefixItems" in said:
            kinds = self.sequence(said["prefixItems"], f"{place}/prefixItems")
            if said.get("items", False) is not False or least > len(kinds) or (most or len(kinds)) < len(kinds):
                raise _refuse(place, "has prefixItems and further items; only a list of just these can be kept")
            rules = [self.rule(one, f"{place}/prefixItems/{index}", depth + 1) for index, one in enumerate(kinds)]
            return self.add('"[" space ' + ' "," space '.join(rules) + ' space "]"')
        if most is not None and most < least:
            raise _refuse(place, f"has minItems {least} and maxItems {most}")
        if most == 0:
            return self.add('"[" space "]"')
        item = self.rule(said.get("items", True), f"{place}/items", depth + 1)
        upper = "" if most is None else str(most - 1)
        some = f'{item} ("," space {item}){{{max(least - 1, 0)},{upper}}}'
        return self.add(f'"[" space ({some} space){"?" if least == 0 else ""} "]"')

    def string(self, said: Mapping[str, Any], place: str) -> str:
        """A text of some length or form."""
        least, most = self.count(said, "minLength", place), self.count(said, "maxLength", place)
        if "format" in said:
            is_known = isinstance(said["format"], str) and said["format"] in _FORMATS
            if not is_known or least is not None or most is not None:
                raise _refuse(
                    place, f"has the format {said['format']!r:.40} (known: {', '.join(_FORMATS)}) or a length"
                )
            return self.add(rf'"\"" {_FORMATS[said["format"]]} "\""')
        if least is None and most is None:
            return "string"
        if most is not None and most < (least or 0):
            raise _refuse(place, f"has minLength {least} and maxLength {most}")
        if most == 0:
            return self.add(r'"\"\""')
        return self.add(rf'"\"" char{{{least or 0},{"" if most is None else most}}} "\""')


def _literal(value: Any, place: str) -> str:
    """A value as JSON, as a literal of the grammar."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _refuse(place, f"has a value that is not JSON: {error}") from error
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
