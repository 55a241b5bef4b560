"""Read a grammar in llama.cpp's notation (GBNF).

Source: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from edgesmith.errors import UnsupportedError

__all__ = ["LAST_CHARACTER", "Characters", "Item", "Rule", "read_grammar"]

MAX_RULES = 4096
MAX_DEPTH = 64
MAX_REPEATS = 1000
MAX_ELEMENTS = 1 << 17
MAX_MADE = 1900  # llama.cpp's own limit is 2,000
LAST_CHARACTER = 0xFFFFFFFF

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_REPEATS = re.compile(r"\{[ \t]*(\d{1,9})[ \t]*(?:(,)[ \t]*(\d{1,9})?[ \t]*)?\}")
_ESCAPE = re.compile(r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[tnr"\\\[\]-])')
_NAMED_ESCAPES = {"t": "\t", "n": "\n", "r": "\r"}
_OPERATORS = {"*": (0, None), "+": (1, None), "?": (0, 1)}

Characters = tuple[tuple[int, int], ...]
"""Ranges of code points, both ends included."""


def read_grammar(text: str) -> dict[str, Rule]:
    """All rules by their names.

    Raises:
        UnsupportedError: It is damaged or too large; the message says where.
    """
    return _Parser(text).parse()


@dataclass
class Item:
    """One element of a sequence: a literal, a class of characters, a rule's name, or a group."""

    name: str | None = None
    group: Rule | None = None
    reads: tuple[Characters, ...] = ()
    """What a literal or class reads, one character after the other."""
    least: int = 1
    most: int | None = 1
    size: int = 1
    """Elements that llama.cpp writes out for it."""
    num_made: int = 0
    """Rules that llama.cpp makes for it."""
    is_repeated: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether it reads nothing: an empty literal."""
        return self.name is None and self.group is None and not self.reads


@dataclass
class Rule:
    """Alternatives, each a sequence."""

    alternatives: list[list[Item]] = field(default_factory=list)

    def items(self) -> Iterator[Item]:
        """All elements, those of groups included."""
        for sequence in self.alternatives:
            for item in sequence:
                yield item
                if item.group is not None:
                    yield from item.group.items()

    def names(self) -> Iterable[str]:
        """The rules that it uses."""
        return (item.name for item in self.items() if item.name is not None)

    @property
    def size(self) -> int:
        """Elements that llama.cpp makes of it."""
        return sum(item.size for sequence in self.alternatives for item in sequence) + len(self.alternatives)


class _Parser:
    """Reads a grammar from its start."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def parse(self) -> dict[str, Rule]:
        """All rules by their names."""
        rules: dict[str, Rule] = {}
        total = 0
        self.skip(_SPACE_AND_LINES)
        while self.at < len(self.text):
            name = self.take(_NAME, "the name of a rule")
            self.skip(_SPACE)
            self.expect("::=")
            self.skip(_SPACE_AND_LINES)
            if name in rules:
                self.fail(f"the rule {name!r} is defined twice")
            rules[name] = self.alternatives(is_nested=False)
            if self.at < len(self.text) and self.text[self.at] not in "\r\n":
                self.fail("a line must end here")
            total += rules[name].size
            if len(rules) > MAX_RULES or total > MAX_ELEMENTS:
                self.fail(f"it is larger than {MAX_RULES:,} rules or {MAX_ELEMENTS:,} elements")
            self.skip(_SPACE_AND_LINES)
        return rules

    def alternatives(self, *, is_nested: bool) -> Rule:
        """Sequences with `|` between them."""
        rule = Rule([self.sequence(is_nested)])
        while self.text.startswith("|", self.at):
            self.at += 1
            self.skip(_SPACE_AND_LINES)
            rule.alternatives.append(self.sequence(is_nested))
        return rule

    def sequence(self, is_nested: bool) -> list[Item]:
        """Elements one after the other."""
        items: list[Item] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            if character in "*+?{":
                if not items or items[-1].is_empty:
                    self.fail("there is nothing to repeat")
                self.repeat_(items[-1])
            elif (item := self.item(character)) is not None:
                items.append(item)
            else:
                break
            self.skip(_SPACE_AND_LINES if is_nested else _SPACE)
        return items

    def item(self, character: str) -> Item | None:
        """The next element; None where a sequence ends."""
        if character == '"':
            literal = self.characters('"')
            return Item(reads=tuple(((one, one),) for one, _ in literal), size=len(literal))
        if character == "[":
            return self.class_()
        if character == ".":
            self.at += 1
            return Item(reads=(((0, LAST_CHARACTER),),))
        if character == "(":
            return self.group()
        if character in "<!":
            self.fail("tokens in a grammar are not supported")
        found = _NAME.match(self.text, self.at)
        if not found:
            return None
        self.at = found.end()
        return Item(name=found[0])

    def group(self) -> Item:
        """Alternatives in brackets."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"groups are nested more than {MAX_DEPTH} deep")
        self.at += 1
        self.skip(_SPACE_AND_LINES)
        rule = self.alternatives(is_nested=True)
        self.expect(")")
        self.depth -= 1
        num_made = 1 + sum(item.num_made + (item.name is not None) for item in rule.items())
        return Item(group=rule, size=rule.size, num_made=num_made)

    def class_(self) -> Item:
        """Characters of which one is read, or none of which."""
        is_inverted = self.text.startswith("^", self.at + 1)
        self.at += is_inverted
        if not (given := self.characters("]")):
            self.fail("a class has no characters")
        ranges: list[tuple[int, int]] = []
        index = 0
        while index < len(given):
            first, _ = given[index]
            is_range = index + 2 < len(given) and given[index + 1] == (ord("-"), False)
            last = given[index + 2][0] if is_range else first
            ranges.append((first, last))
            index += 3 if is_range else 1
        chosen = _invert(ranges) if is_inverted else tuple(ranges)
        return Item(reads=(chosen,), size=len(given))

    def characters(self, end: str) -> list[tuple[int, bool]]:
        """Characters up to the closing one, and whether each was escaped."""
        self.at += 1
        found: list[tuple[int, bool]] = []
        while not self.text.startswith(end, self.at):
            if self.at >= len(self.text):
                self.fail(f"the closing {end} is missing")
            if self.text[self.at] == "\\":
                escape = self.take(_ESCAPE, "an escape")[1:]
                is_number = escape[0] in "xuU"
                code = int(escape[1:], 16) if is_number else ord(_NAMED_ESCAPES.get(escape, escape))
                found.append((code, True))
            else:
                found.append((ord(self.text[self.at]), False))
                self.at += 1
        self.at += 1
        return found

    def repeat_(self, item: Item) -> None:
        """Apply a repetition to an element."""
        if item.is_repeated:
            self.fail("a repetition of a repetition needs brackets between them")
        if (character := self.text[self.at]) in _OPERATORS:
            least, most = _OPERATORS[character]
            self.at += 1
        else:
            found = _REPEATS.match(self.text, self.at)
            if not found:
                self.fail("a repetition is {m}, {m,} or {m,n}")
            self.at = found.end()
            least = int(found[1])
            most = (int(found[3]) if found[3] else None) if found[2] else least
        times = max(least, most or 0, 1)
        if times > MAX_REPEATS or (most is not None and most < least):
            self.fail(f"a repetition of {least} to {most} times; it can be of 0 to {MAX_REPEATS}")
        if times * max(1, item.num_made) > MAX_MADE:
            self.fail(f"repetitions within repetitions make {times * item.num_made:,} rules; the limit is {MAX_MADE:,}")
        num_optional = 1 if most is None else most - least
        item.least, item.most, item.is_repeated = least, most, True
        item.size = item.size * times + 2 * num_optional
        item.num_made += num_optional

    def take(self, pattern: re.Pattern[str], what: str) -> str:
        """Text of a form that must be there."""
        found = pattern.match(self.text, self.at)
        if not found:
            self.fail(f"expected {what}")
        self.at = found.end()
        return found[0]

    def expect(self, text: str) -> None:
        """Text that must be there."""
        if not self.text.startswith(text, self.at):
            self.fail(f"expected {text!r}")
        self.at += len(text)

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Pass over white space and comments."""
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def fail(self, what: str) -> NoReturn:
        """Say what is wrong, and where."""
        line = self.text.count("\n", 0, self.at) + 1
        near = self.text[self.at : self.at + 20].partition("\n")[0]
        raise UnsupportedError(
            f"the grammar is not understood at line {line}, near {near!r}: {what}",
            mend="See the description of GBNF in llama.cpp's folder `grammars`.",
        )


def _invert(ranges: Iterable[tuple[int, int]]) -> Characters:
    """All other characters."""
    left: list[tuple[int, int]] = []
    start = 0
    for first, last in sorted(ranges):
        if first > start:
            left.append((start, first - 1))
        start = max(start, last + 1)
    return (*left, (start, LAST_CHARACTER)) if start <= LAST_CHARACTER else tuple(left)
