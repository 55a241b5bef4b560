"""How many ways of reading a text a grammar keeps open at once: refused where no text's end bounds them.

llama.cpp keeps one stack of pending elements for each way in which what was written so far may be read. A rule whose
alternatives begin alike and both come back to it, such as `root ::= "a" root "b" | "a" root "c"`, doubles them with
each character. Here all texts are followed at once: a state is the set of stacks above what they have in common, and
there are finitely many states exactly where the number of stacks is bounded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

from edgesmith.errors import UnsupportedError
from serve.runtime.grammar_text import Characters, Item, Rule

__all__ = ["check_growth"]

MAX_STACKS = 4096
MAX_WORK = 3_000_000  # elements of stacks that are followed
MAX_UNKNOWN = 32  # rules that end one below the other
_COPIES = 3  # of an element that is repeated more often, the rest being like them

_Stack = tuple[int, ...]
"""Numbers of pending elements, the next one last."""
_State = frozenset[_Stack]


def check_growth(rules: dict[str, Rule], root: str) -> None:
    """Refuse a grammar that can be followed in ever more ways at once.

    Args:
        rules: Without one that calls itself before it reads something.
        root: Where a text starts.

    Raises:
        UnsupportedError: See above; the message names a rule.
    """
    _Search(_Compiled(rules, root)).run()


@dataclass(slots=True)
class _Element:
    """One element of a sequence, as llama.cpp has it."""

    rule: int
    name: str
    """Of the rule in the text."""
    scale: int = 1
    """How many elements of llama.cpp's it stands for."""
    mask: int = 0
    """Classes of characters that it reads; none where it is another rule."""
    called: int = -1
    following: int = -1


class _Compiled:
    """Numbered rules and elements, of those that can be reached."""

    def __init__(self, rules: dict[str, Rule], root: str) -> None:
        self.rules = rules
        self.elements: list[_Element] = []
        self.starts: list[list[int]] = []
        """Of each rule's alternatives, the first element; -1 for an empty one."""
        self.classes: dict[Characters, int] = _classes(rules)
        self._named: dict[str, int] = {}
        self._open: list[str] = []
        self.root = self.named(root)
        while self._open:
            name = self._open.pop()
            self.fill(self._named[name], name, rules[name])
        self.returns = self._find_returns()

    def named(self, name: str) -> int:
        """The number of a rule."""
        if name not in self._named:
            self._named[name] = self.new_rule()
            self._open.append(name)
        return self._named[name]

    def new_rule(self) -> int:
        """The number of a rule that is filled later."""
        self.starts.append([])
        return len(self.starts) - 1

    def fill(self, number: int, name: str, rule: Rule) -> None:
        """Write out a rule's alternatives."""
        for sequence in rule.alternatives:
            made: list[_Element] = []
            for item in sequence:
                made += self.written(item, number, name)
            self.add(number, made)

    def add(self, number: int, made: list[_Element]) -> None:
        """One alternative."""
        first = len(self.elements)
        for index, element in enumerate(made, start=first + 1):
            element.rule, element.following = number, index
        if made:
            made[-1].following = -1
        self.elements += made
        self.starts[number].append(first if made else -1)

    def written(self, item: Item, number: int, name: str) -> list[_Element]:
        """An element as often as it is repeated, what may be left out as rules of their own."""
        if item.is_empty:
            return []
        called = self.named(item.name) if item.name is not None else -1
        if item.group is not None:
            called = self.new_rule()
            self.fill(called, name, item.group)

        def once(scale: int = 1) -> list[_Element]:
            if called >= 0:
                return [_Element(number, name, scale, called=called)]
            return [_Element(number, name, scale, mask=self.classes[one]) for one in item.reads]

        num_kept = min(item.least, _COPIES)
        made = [one for _ in range(num_kept) for one in once(-(-item.least // max(1, num_kept)))]
        if item.most is None:
            rest = self.new_rule()
            self.add(rest, [*once(), _Element(rest, name, called=rest)])
            self.add(rest, [])
        elif item.most > item.least:
            rest, optional = -1, item.most - item.least
            for _ in range(min(optional, _COPIES)):
                inner, rest = rest, self.new_rule()
                scale = -(-optional // _COPIES)
                self.add(rest, [*once(scale), *([_Element(rest, name, scale, called=inner)] if inner >= 0 else [])])
                self.add(rest, [])
        else:
            return made
        return [*made, _Element(number, name, called=rest)]

    def _find_returns(self) -> list[set[int]]:
        """Where each rule may go on when it ends: elements, or -1 for the end of the text."""
        returns: list[set[int]] = [set() for _ in self.starts]
        returns[self.root].add(-1)
        as_last: defaultdict[int, set[int]] = defaultdict(set)  # rule → those that it ends with
        for element in self.elements:
            if element.called >= 0 and element.following >= 0:
                returns[element.called].add(element.following)
            elif element.called >= 0:
                as_last[element.rule].add(element.called)
        changed = list(as_last)
        while changed:
            rule = changed.pop()
            for called in as_last[rule]:
                if not returns[rule] <= returns[called]:
                    returns[called] |= returns[rule]
                    changed.append(called)
        return returns


def _classes(rules: dict[str, Rule]) -> dict[Characters, int]:
    """Of each set of characters, the classes in it as bits; characters that all sets treat alike are one class."""
    sets = {one for rule in rules.values() for item in rule.items() for one in item.reads}
    borders = sorted({edge for one in sets for first, last in one for edge in (first, last + 1)})
    index = {edge: number for number, edge in enumerate(borders)}
    masks = {}
    for one in sets:
        bits = [((1 << index[last + 1]) - (1 << index[first])) if last >= first else 0 for first, last in one]
        masks[one] = reduce(int.__or__, bits, 0)
    return masks


class _Search:
    """Follows all texts through a grammar."""

    def __init__(self, grammar: _Compiled) -> None:
        self.grammar = grammar
        self.elements = grammar.elements
        self.left = MAX_WORK
        self.seen: set[_State] = set()
        self.open: list[_State] = []

    def run(self) -> None:
        """Until no state is new, or there are too many."""
        first: set[_Stack] = set()
        for start in self.grammar.starts[self.grammar.root]:
            if start >= 0:
                self.expand((), start, first)
        self.note(frozenset(first))
        while self.open:
            state = self.open.pop()
            for stacks in self.split(state):
                self.step(stacks, None)

    def split(self, state: _State) -> Iterator[list[_Stack]]:
        """The stacks that read the same characters, for all characters."""
        by_mask: defaultdict[int, list[_Stack]] = defaultdict(list)
        for stack in state:
            by_mask[self.elements[stack[-1]].mask].append(stack)
        blocks: list[tuple[int, list[int]]] = []
        for mask in by_mask:
            left, made = mask, []
            for block, masks in blocks:
                if both := block & mask:
                    made.append((both, [*masks, mask]))
                if rest := block & ~mask:
                    made.append((rest, masks))
                left &= ~block
            blocks = [*made, (left, [mask])] if left else made
        together = {tuple(masks) for _, masks in blocks}
        for masks_ in together:
            yield [stack for mask in masks_ for stack in by_mask[mask]]

    def step(self, stacks: list[_Stack], below: set[int] | None, depth: int = 0) -> None:
        """Read a character with each, where something that is not known may lie below them all."""
        found: set[_Stack] = set()
        ends = False
        for stack in stacks:
            ends |= self.advance(stack, found)
        if not ends:
            self.note(frozenset(found))
            return
        self.left -= sum(map(len, stacks))
        if depth > MAX_UNKNOWN or self.left < 0:
            self.refuse(stacks)
        if below is None:
            sets = [self.grammar.returns[self.elements[stack[0]].rule] for stack in stacks]
            below = set.intersection(*sets)
        for one in below:
            if one < 0:
                self.note(frozenset(found))  # those that end have nothing below them
            else:
                self.step([(one, *stack) for stack in stacks], self.grammar.returns[self.elements[one].rule], depth + 1)

    def advance(self, stack: _Stack, found: set[_Stack]) -> bool:
        """Pass over the next element; whether all that is known may end there."""
        following = self.elements[stack[-1]].following
        return self.expand(stack[:-1], following, found) if following >= 0 else self.go_back(stack[:-1], found)

    def go_back(self, stack: _Stack, found: set[_Stack]) -> bool:
        """A rule ended."""
        return self.expand(stack[:-1], stack[-1], found) if stack else True

    def expand(self, stack: _Stack, number: int, found: set[_Stack]) -> bool:
        """Go into rules until a character is read."""
        ends = False
        open_, seen = [(stack, number)], {(stack, number)}
        while open_:
            stack, number = open_.pop()
            self.left -= 1 + len(stack) // 4
            element = self.elements[number]
            if element.called < 0:
                found.add((*stack, number))
            if self.left < 0 or len(found) > MAX_STACKS:
                self.refuse([(*stack, number)])
            if element.called < 0:
                continue
            below = (*stack, element.following) if element.following >= 0 else stack
            for start in self.grammar.starts[element.called]:
                following = (below, start) if start >= 0 else (below[:-1], below[-1]) if below else None
                if following is None:
                    ends = True
                elif following not in seen:
                    seen.add(following)
                    open_.append(following)
        return ends

    def note(self, state: _State) -> None:
        """Remember a state to go on from, without what its stacks have in common."""
        if not state:
            return
        shared = 0
        if len(state) == 1:
            (stack,) = state
            shared = len(stack) - 1
        else:
            lowest, highest = min(state), max(state)  # whatever these share, all do
            most = min(map(len, state)) - 1
            while shared < most and lowest[shared] == highest[shared]:
                shared += 1
        state = frozenset(stack[shared:] for stack in state)
        if state in self.seen:
            return
        self.left -= sum(map(len, state))
        if self.left < 0 or (len(state) > 1 and self.weigh(state) > MAX_STACKS):
            self.refuse(list(state))
        self.seen.add(state)
        self.open.append(state)

    def weigh(self, state: _State) -> int:
        """The stacks that llama.cpp may have, where a long repetition is not written out here."""
        total = 0
        for stack in state:
            weight = 1
            for number in stack:
                weight *= self.elements[number].scale
            total += weight
        return total

    def refuse(self, stacks: list[_Stack]) -> None:
        """Name the rule that the deepest stack starts in."""
        name = self.elements[max(stacks, key=len)[0]].name
        raise UnsupportedError(
            f"the grammar can be followed in ever more ways at once, or in more than {MAX_STACKS:,}, such as in its "
            f"rule {name!r}: alternatives that hold further ones begin alike",
            mend="Let such alternatives begin differently: in a schema, give each kind of object a first property with "
            "a `const` of its own, and let no `anyOf` have two lists that hold the same; in a grammar, write once what "
            'they begin with: `"a" root ("b" | "c")`.',
        )
