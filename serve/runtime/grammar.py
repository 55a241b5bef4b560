"""Check a grammar in llama.cpp's notation (GBNF) before native code reads it.

llama.cpp prints what it dislikes, and hangs or aborts on some grammars: those that call themselves before they
read anything, repetitions that end before they begin, endless nesting, more and more ways to read the same text.

Source: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator

from edgesmith.errors import UnsupportedError
from serve.runtime.grammar_growth import check_growth
from serve.runtime.grammar_text import Item, Rule, read_grammar

__all__ = ["check_grammar"]

MAX_BYTES = 1 << 18
ROOT = "root"


@functools.lru_cache(maxsize=32)
def check_grammar(text: str) -> None:
    """Refuse a grammar that llama.cpp cannot follow, or not safely.

    Raises:
        UnsupportedError: It is damaged, or too large, calls itself without reading, or can be followed in ever more
            ways at once; the message says where.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise UnsupportedError(f"the grammar has half a character at {error.start}") from error
    if size > MAX_BYTES or "\0" in text:
        raise UnsupportedError(f"the grammar has {size:,} bytes or a zero among them; the limit is {MAX_BYTES:,}")
    rules = read_grammar(text)
    if ROOT not in rules:
        raise UnsupportedError(f"the grammar has no rule {ROOT!r}", mend=f"Name the first rule {ROOT}.")
    if undefined := {name for rule in rules.values() for name in rule.names()} - rules.keys():
        raise UnsupportedError(f"the grammar uses rules that it does not define: {', '.join(sorted(undefined))}")
    _check_recursion(rules)
    check_growth(rules, ROOT)


def _check_recursion(rules: dict[str, Rule]) -> None:
    """Refuse a rule that can come back to itself before a character is read."""
    nullable = _nullable(rules)
    for name, rule in rules.items():
        for item in rule.items():
            if item.most is None and _is_nullable(item, nullable, once=True):
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


def _nullable(rules: dict[str, Rule]) -> set[str | int]:
    """Rules, by name, and groups, by identity, that may read nothing."""
    named: list[tuple[str | int, Rule]] = list(rules.items())
    groups = [(id(item.group), item.group) for rule in rules.values() for item in rule.items() if item.group]
    missing: list[int] = []  # of each sequence, elements that are not known to be nullable
    heads: list[str | int] = []
    waiting: defaultdict[str | int, list[int]] = defaultdict(list)
    ready: list[str | int] = []
    for head, rule in [*named, *groups]:
        for sequence in rule.alternatives:
            needed = [_key(item) for item in sequence if not (item.is_empty or item.least == 0)]
            keys = [key for key in needed if key is not None]
            if not needed:
                ready.append(head)
            elif len(keys) == len(needed):  # else it reads something
                for key in keys:
                    waiting[key].append(len(heads))
                heads.append(head)
                missing.append(len(keys))
    found: set[str | int] = set()
    while ready:
        head = ready.pop()
        if head in found:
            continue
        found.add(head)
        for index in waiting[head]:
            missing[index] -= 1
            if not missing[index]:
                ready.append(heads[index])
    return found


def _key(item: Item) -> str | int | None:
    return item.name if item.name is not None else id(item.group) if item.group is not None else None


def _is_nullable(item: Item, nullable: set[str | int], *, once: bool = False) -> bool:
    return item.is_empty or (item.least == 0 and not once) or _key(item) in nullable


def _leading(rule: Rule, nullable: set[str | int]) -> Iterator[str]:
    """Rules that may come first."""
    for sequence in rule.alternatives:
        for item in sequence:
            if item.name is not None:
                yield item.name
            elif item.group is not None:
                yield from _leading(item.group, nullable)
            if not _is_nullable(item, nullable):
                break
