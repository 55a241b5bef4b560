"""Grammars that keep ever more ways open are refused, and ordinary ones are not."""

from __future__ import annotations

from typing import Any

import pytest

from edgesmith.errors import UnsupportedError
from serve.runtime.grammar import check_grammar
from serve.runtime.json_grammar import json_schema_to_grammar

SELF = {"$ref": "#"}


def some(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def record(required: int = 0, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)[:required]}


EXPLOSIVE = {
    "three calls": 'root ::= "a" root "b" | "a" root "c" | "a" root "d"',
    "optional calls": 'root ::= "[" ("a"? root?){0,5} "]"',
    "calls behind what is ambiguous": 'root ::= any (left | right)\nany ::= [xyz]*\nleft ::= "y" root "1" | "."\n'
    'right ::= "z" root "2"',
    "chain without recursion": "\n".join(
        ["root ::= r0", *(f'r{n} ::= r{n + 1} "x" | r{n + 1} "y"' for n in range(20)), 'r20 ::= "a"']
    ),
    "repetitions of repetitions": 'root ::= (a "x"?){1,600}\na ::= b\nb ::= ("x" | "xx"){1,900}',
    "ranges that overlap": 'root ::= [a-m] root "1" | [^n-z] root "2" | "."',
    "escapes": r'root ::= "\x61" root "1" | [\u0061] root "2" | "."',
}
EXPLOSIVE_SCHEMAS = {
    "three lists": {"anyOf": [some(SELF), some(SELF, minItems=1), some(SELF, maxItems=7)]},
    "list of lists": some({"anyOf": [SELF, some(SELF, minItems=1)]}),
    "objects that begin alike": {"anyOf": [{"type": "null"}, *(record(2, left=SELF, op={"const": op}) for op in "+-")]},
}
ORDINARY = {
    "list": 'root ::= "a" root | "b"',
    "arithmetic": 'root ::= (expr "=" ws term "\\n")+\nexpr ::= term ([-+*/] term)*\n'
    'term ::= [a-z] [a-z0-9_]* ws | [0-9]+ ws | "(" ws expr ")" ws\nws ::= [ \\t\\n]*',
    "anything around": 'root ::= .* "end" .*',
    "brackets": 'root ::= "(" root ")" | "[" root "]" | ""',
    "common start written once": 'root ::= "a" root ("b" | "c") | "."',
}
ORDINARY_SCHEMAS = {
    "anything": {},
    "tree": record(1, name={"enum": ["abc", "abd", "x"]}, children=some(SELF)),
    "nullable": record(1, a={"anyOf": [{"type": "string"}, {"type": "null"}]}, b={"type": ["integer", "null"]}),
    "numbers": {"anyOf": [{"type": "integer"}, {"type": "number"}, {"type": "string"}]},
    "nested lists": some(some(some({"type": "number"}, minItems=1, maxItems=9)), maxItems=500),
    "kinds told apart": {"anyOf": [record(1, kind={"const": kind}, child=SELF) for kind in "abc"]},
    "objects of plain values": {"anyOf": [record(1, a={"type": "string"}), record(2, a={"type": "string"}, b={})]},
    "lists of plain values": {"anyOf": [some({"type": "string"}), some({"type": "number"})]},
    "much that is optional": record(0, **{f"property{n}": {"type": "string"} for n in range(60)}),
    "long texts": some(record(2, a={"type": "string", "maxLength": 900}, b={"type": "string", "minLength": 900})),
    "many values": {"enum": [f"value number {n}" for n in range(1000)]},
}


@pytest.mark.parametrize("name", [*EXPLOSIVE, *EXPLOSIVE_SCHEMAS])
def test_ways_that_multiply_are_refused(name: str) -> None:
    grammar = EXPLOSIVE[name] if name in EXPLOSIVE else json_schema_to_grammar(EXPLOSIVE_SCHEMAS[name])
    with pytest.raises(UnsupportedError, match="ever more ways") as caught:
        check_grammar(grammar)
    assert "begin differently" in caught.value.mend


@pytest.mark.parametrize("name", [*ORDINARY, *ORDINARY_SCHEMAS])
def test_ordinary_grammars_and_schemas_pass(name: str) -> None:
    check_grammar(ORDINARY[name] if name in ORDINARY else json_schema_to_grammar(ORDINARY_SCHEMAS[name]))


@pytest.mark.parametrize("end", ['""', '"a"'])
def test_long_chains_of_rules_are_read_once(end: str) -> None:
    """A fixed point that goes through all rules for each would take minutes here."""
    chain = [f"r{n} ::= r{n + 1} r{n + 1}?" if n == 0 else f"r{n} ::= r{n + 1}" for n in range(4000)]
    check_grammar("\n".join(["root ::= r0", *chain, f"r4000 ::= {end}"]))


def test_what_may_be_empty_is_found_through_groups() -> None:
    with pytest.raises(UnsupportedError, match="'root' repeats without end"):
        check_grammar('root ::= ("x"? (a | "y"))*\na ::= b ("" | b)\nb ::= "z"{0,3}')
    with pytest.raises(UnsupportedError, match="calls itself"):
        check_grammar('root ::= a b root | "x"\na ::= (b)?\nb ::= ("" | a)')
