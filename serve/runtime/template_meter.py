"""Look through a parsed chat template: for what no honest one does, and for the places where its work is counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from serve.runtime.template_budget import MAX_INTEGER_BITS

__all__ = ["Meter", "forbidden_syntax"]


def forbidden_syntax(tree: nodes.Template) -> str:
    """Say what a template does that it may not; an empty text if nothing was found.

    What it puts together while it runs is found when it runs.
    """
    for name in _names(tree):
        if name.startswith("__") or name in ("mro", "func_globals", "gi_frame", "f_globals"):
            return f"it reaches for {name!r}"
    for kind in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends):
        if tree.find(kind) is not None:
            return f"it uses {kind.__name__.lower()}"
    for const in tree.find_all(nodes.Const):
        if isinstance(const.value, int) and const.value.bit_length() > MAX_INTEGER_BITS:
            return "it computes with absurd numbers"
    return ""


def _names(tree: nodes.Template) -> Iterator[str]:
    """Attributes by name, whatever way they are asked for."""
    for attribute in tree.find_all(nodes.Getattr):
        yield attribute.attr
    for item in tree.find_all(nodes.Getitem):
        if isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, str):
            yield item.arg.value
    for one in tree.find_all(nodes.Filter):
        given = [*one.args, *(pair.value for pair in one.kwargs)]
        for argument in given if one.name in ("attr", "map", "groupby", "sort", "sum", "selectattr") else ():
            if isinstance(argument, nodes.Const) and isinstance(argument.value, str):
                yield from argument.value.split(".")


class Meter(NodeTransformer):
    """Puts calls of the sandbox's meters into a template: around what grows, and where something repeats."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """Change what a node holds, then the node."""
        self.generic_visit(node, *args, **kwargs)
        match node:
            case nodes.For():  # each turn, also those that a condition leaves out
                node.iter = _call("metered_iterate", node.iter)
                _enter(node)
            case nodes.Macro() | nodes.CallBlock():  # each call, from the body: it may call itself
                _enter(node)
            case nodes.Concat():
                return _call("metered_concat", *node.nodes)
            case nodes.List() | nodes.Dict():
                return _call("metered_value", node)
            case nodes.Tuple(ctx="load"):  # not names that are assigned
                return _call("metered_value", node)
            case nodes.Getitem(arg=nodes.Slice()):  # a copy
                return _call("metered_value", node)
            case nodes.Compare() | nodes.Operand() if not isinstance(node.expr, nodes.Const):
                node.expr = _call("metered_value", node.expr)  # walked to its end
        return node


def _call(meter: str, *arguments: Any) -> nodes.Call:
    line = arguments[0].lineno if arguments else 1
    called = nodes.EnvironmentAttribute(meter, lineno=line)
    return nodes.Call(called, list(arguments), [], None, None, lineno=line)


def _enter(node: Any) -> None:
    """Count each run of a body, with the literal text that it may give."""
    characters = sum(len(text.data) for part in node.body for text in part.find_all(nodes.TemplateData))
    line = node.lineno
    call = _call("metered_enter", nodes.Const(characters, lineno=line))
    node.body.insert(0, nodes.ExprStmt(call, lineno=line))
