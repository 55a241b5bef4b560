"""The sandbox in which chat templates run: what Jinja's own forbids, and a budget for work and memory on top.

Jinja's sandbox keeps a template from Python's internals, but not from endless loops or texts of terabytes. Here every
loop, call, filter, comparison, list and text is paid for out of one budget, before it grows where that is possible.

Source: https://jinja.palletsprojects.com/en/stable/sandbox/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import BuiltinMethodType, MethodType
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, TemplateReference, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

from serve.runtime.template_budget import (
    BUDGET,
    STEPS_PER_CALL,
    check_filter,
    check_operands,
    check_text_method,
    check_widths,
    counted,
)
from serve.runtime.template_meter import Meter, forbidden_syntax

__all__ = ["RefusedConversation", "Sandbox"]


_TEXT_METHODS = (
    "capitalize", "casefold", "center", "count", "endswith", "find", "format", "format_map", "index", "isalnum",
    "isalpha", "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper",
    "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
    "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "swapcase", "title", "upper", "zfill",
)  # fmt: skip
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(_TEXT_METHODS),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    range: frozenset({"count", "index", "start", "step", "stop"}),
    int: frozenset({"bit_length", "is_integer"}),
    float: frozenset({"is_integer"}),
}
_OPEN_TYPES = (BlockReference, LoopContext, Macro, Namespace, TemplateReference, Undefined)
_REMOVED_FILTERS = ("filesizeformat", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
# Filters that look at a value without walking it.
_CHEAP_FILTERS = frozenset({"count", "d", "default", "first", "items", "last", "length"})


class RefusedConversation(jinja2.TemplateError):
    """The template itself says that it cannot render these messages."""


class _Namespace(Namespace):
    """Changed values across scopes; no names of internals, and nothing of it is shown as text."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _Namespace._check(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"

    @staticmethod
    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace takes no name such as {name!r}")


class _Formatter(SandboxedFormatter):
    """`str.format` without wide paddings, each field paid for."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        check_widths(format_spec)
        return BUDGET.get().spend_value(super().format_field(value, format_spec))


class _Generation(Extension):
    """`{% generation %}`, which marks what the model writes; it renders as its body."""

    tags = {"generation"}  # noqa: RUF012 - the library's own way

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment with the settings, filters and functions that transformers gives to chat templates."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, to_json: Callable[..., str]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed before a budget is there
            extensions=[_Generation, loopcontrols],
            finalize=_emit,
        )
        self.filters["tojson"] = to_json
        for name in _REMOVED_FILTERS:
            self.filters.pop(name)
        self.filters = {name: _guard_filter(self, name, one) for name, one in self.filters.items()}
        self.tests = {name: _guard_test(self, one) for name, one in self.tests.items()}
        for name in ("cycler", "joiner", "lipsum"):
            self.globals.pop(name)
        self.globals |= {"dict": _make_dict, "namespace": _Namespace, "raise_exception": _refuse}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if found := forbidden_syntax(tree):
            raise SecurityError(found)
        Meter().visit(tree)
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Methods that are known, and nothing of other kinds of objects."""
        if not super().is_safe_attribute(obj, attr, value):
            return False
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return isinstance(obj, _OPEN_TYPES)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Refuse at once, where Jinja gives something that shows as an empty text."""
        raise SecurityError(f"it reaches for {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Replace `format` and `format_map` of texts."""
        if not isinstance(value, MethodType | BuiltinMethodType) or value.__name__ not in ("format", "format_map"):
            return None
        text = value.__self__
        if type(text) is not str:
            raise SecurityError(f"it formats a {type(text).__name__}")
        formatter = _Formatter(self)
        if value.__name__ == "format":
            return lambda *args, **kwargs: formatter.vformat(text, args, kwargs)
        return lambda mapping: formatter.vformat(text, (), mapping)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators whose results may be larger than what they take."""
        check_operands(BUDGET.get(), operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Pay for what goes in and what comes out."""
        if getattr(function, "__func__", None) in _METERS:
            return function(*args)
        budget = BUDGET.get()
        budget.spend(STEPS_PER_CALL)
        for value in (*args, *kwargs.values()):
            budget.spend_value(value)
        if isinstance(owner := getattr(function, "__self__", None), str):
            args = check_text_method(budget, owner, function.__name__, args)
        return budget.spend_value(super().call(context, function, *args, **kwargs))

    # What `Meter` puts into the template.

    def metered_enter(self, characters: int) -> None:
        """A body of a loop or macro starts, which holds so much literal text."""
        BUDGET.get().spend_characters(characters)

    def metered_iterate(self, values: Any) -> Any:
        """A loop over these starts."""
        if isinstance(values, Iterator):
            return counted(BUDGET.get(), values)
        BUDGET.get().spend(len(values) if hasattr(values, "__len__") else 1)
        return values

    def metered_value(self, value: Any) -> Any:
        """A list, a part of a text or list, or something that is compared."""
        return BUDGET.get().spend_value(value)

    def metered_concat(self, *values: Any) -> str:
        """Texts joined by `~`."""
        return "".join([str(BUDGET.get().spend_value(value)) for value in values])


_METERS = frozenset(
    {Sandbox.metered_enter, Sandbox.metered_iterate, Sandbox.metered_value, Sandbox.metered_concat}
)  # fmt: skip


@pass_context
def _emit(_: Context, value: Any) -> Any:
    return BUDGET.get().spend_value(value)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _refuse(message: str) -> None:
    raise RefusedConversation(message)


def _passed_first(function: Any, environment: Sandbox, context: Context) -> tuple[Any, ...]:
    """What a filter or test wants before its arguments."""
    kind = getattr(function, "jinja_pass_arg", None)
    known = {"context": context, "eval_context": context.eval_ctx, "environment": environment}
    return () if kind is None else (known[kind.name],)


def _guard_filter(environment: Sandbox, name: str, function: Any) -> Any:
    @pass_context
    def guarded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        budget.spend(STEPS_PER_CALL // 4)
        if name not in _CHEAP_FILTERS:
            for one in (value, *args, *kwargs.values()):
                budget.spend_value(one)
        value = check_filter(budget, name, value, args, kwargs)
        return budget.spend_value(function(*_passed_first(function, environment, context), value, *args, **kwargs))

    return guarded


def _guard_test(environment: Sandbox, function: Any) -> Any:
    @pass_context
    def guarded(context: Context, value: Any, *args: Any) -> Any:
        for one in (value, *args) if args else ():
            BUDGET.get().spend_value(one)
        return function(*_passed_first(function, environment, context), value, *args)

    return guarded
