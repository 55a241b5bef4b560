"""Check a grammar in llama.cpp's notation (GBNF) before native code reads it.

llama.cpp prints what it dislikes, and hangs or aborts on some grammars: those that call themselves before they
read anything, repetitions that end before they begin, endless nesting.

Source: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from edgesmith.errors import UnsupportedError

__all__ = ["check_grammar"]

MAX_BYTES = 1 << 18
MAX_RULES = 4096
MAX_DEPTH = 64
MAX_REPEATS = 1000
MAX_ELEMENTS = 1 << 17
MAX_MADE = 1900  # llama.cpp's own limit is 2,000
ROOT = "root"

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_REPEATS = re.compile(r"\{[ \t]*(\d{1,9})[ \t]*(?:(,)[ \t]*(\d{1,9})?[ \t]*)?\}")
_ESCAPE = re.compile(r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[tnr"\\\[\]-])')
_OPERATORS = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def check_grammar(text: str) -> None:
    """Refuse a grammar that llama.cpp cannot follow, or not safely.

    Raises:
        UnsupportedError: It is damaged, or too large, or calls itself without reading; the message says where.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise UnsupportedError(f"the grammar has half a character at {error.start}") from error
    if size > MAX_BYTES or "\0" in text:
        raise UnsupportedError(f"the grammar has {size:,} bytes or a zero among them; the limit is {MAX_BYTES:,}")
    rules = _Parser(text).parse()
    if ROOT not in rules:
        raise UnsupportedError(f"the grammar has no rule {ROOT!r}", mend=f"Name the first rule {ROOT}.")
    if undefined := {name for rule in rules.values() for name in rule.names()} - rules.keys():
        raise UnsupportedError(f"the grammar uses rules that it does not define: {', '.join(sorted(undefined))}")
    _check_recursion(rules)


@dataclass
class _Item:
    """One element of a sequence: a literal, a class of characters, a rule's name, or a group."""

    name: str | None = None
    group: _Rule | None = None
    is_empty: bool = False
    """Reads nothing: an empty literal."""
    least: int = 1
    most: int | None = 1
    size: int = 1
    """Elements that llama.cpp writes out for it."""
    num_made: int = 0
    """Rules that llama.cpp makes for it."""
    is_repeated: bool = False


@dataclass
class _Rule:
    """Alternatives, each a sequence."""

    alternatives: list[list[_Item]] = field(default_factory=list)

    def items(self) -> Iterator[_Item]:
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

    def parse(self) -> dict[str, _Rule]:
        """All rules by their names."""
        rules: dict[str, _Rule] = {}
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

    def alternatives(self, *, is_nested: bool) -> _Rule:
        """Sequences with `|` between them."""
        rule = _Rule([self.sequence(is_nested)])
        while self.text.startswith("|", self.at):
            self.at += 1
            self.skip(_SPACE_AND_LINES)
            rule.alternatives.append(self.sequence(is_nested))
        return rule

    def sequence(self, is_nested: bool) -> list[_Item]:
        """Elements one after the other."""
        items: list[_Item] = []
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

    def item(self, character: str) -> _Item | None:
        """The next element; None where a sequence ends."""
        if character == '"':
            count = self.characters('"')
            return _Item(is_empty=not count, size=count)
        if character == "[":
            self.at += self.text.startswith("^", self.at + 1)
            if not (count := self.characters("]")):
                self.fail("a class has no characters")
            return _Item(size=count)
        if character == ".":
            self.at += 1
            return _Item()
        if character == "(":
            return self.group()
        if character in "<!":
            self.fail("tokens in a grammar are not supported")
        found = _NAME.match(self.text, self.at)
        if not found:
            return None
        self.at = found.end()
        return _Item(name=found[0])

    def group(self) -> _Item:
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
        return _Item(group=rule, size=rule.size, num_made=num_made)

    def characters(self, end: str) -> int:
        """Characters up to the closing one; the number of them."""
        self.at += 1
        count = 0
        while not self.text.startswith(end, self.at):
            if self.at >= len(self.text):
                self.fail(f"the closing {end} is missing")
            self.take(_ESCAPE, "an escape") if self.text[self.at] == "\\" else self.advance()
            count += 1
        self.at += 1
        return count

    def advance(self) -> None:
        """Pass over one character."""
        self.at += 1

    def repeat_(self, item: _Item) -> None:
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


def _check_recursion(rules: dict[str, _Rule]) -> None:
    """Refuse a rule that can come back to itself before a character is read."""
    nullable: set[str] = set()
    while True:
        found = {name for name, rule in rules.items() if _is_nullable(rule, nullable)}
        if found == nullable:
            break
        nullable = found
    for name, rule in rules.items():
        for item in rule.items():
            if item.most is None and _item_is_nullable(item, nullable, once=True):
                raise UnsupportedError(f"the grammar's rule {name!r} repeats without end what may be empty")
    starts = {name: set(_leading(rule, nullable)) for name, rule in rules.items()}
    done: set[str] = set()
    for name in rules:
        _walk(name, starts, done)


def _walk(first: str, starts: dict[str, set[str]], done: set[str]) -> None:
    """Depth first without recursion; a rule met again on the way to itself is the fault."""
    way: list[tuple[str, Iterator[str]]] = [(first, iter(starts[first]))] if first not in done else []
    open_names = {first}
    while way:
        name, following = way[-1]
        following_name = next(following, None)
        if following_name is None:
            done.add(name)
            open_names.discard(name)
            way.pop()
        elif following_name in open_names:
            raise UnsupportedError(
                f"the grammar's rule {following_name!r} calls itself before it reads a character",
                mend="Put what is read first to the left: `list ::= item list?` instead of `list ::= list? item`.",
            )
        elif following_name not in done:
            open_names.add(following_name)
            way.append((following_name, iter(starts[following_name])))


def _is_nullable(rule: _Rule, nullable: set[str]) -> bool:
    return any(all(_item_is_nullable(item, nullable) for item in sequence) for sequence in rule.alternatives)


def _item_is_nullable(item: _Item, nullable: set[str], *, once: bool = False) -> bool:
    if item.is_empty or (item.least == 0 and not once):
        return True
    if item.name is not None:
        return item.name in nullable
    return item.group is not None and _is_nullable(item.group, nullable)


def _leading(rule: _Rule, nullable: set[str]) -> Iterator[str]:
    """Rules that may come first."""
    for sequence in rule.alternatives:
        for item in sequence:
            if item.name is not None:
                yield item.name
            elif item.group is not None:
                yield from _leading(item.group, nullable)
            if not _item_is_nullable(item, nullable):
                break
