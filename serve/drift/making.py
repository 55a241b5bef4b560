"""Make a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgesmith.tasks import Task, TaskInput
from serve.drift.reference import Reference
from serve.runtime import Engine

__all__ = ["make_reference", "make_text_reference"]


def make_reference(engine: Engine, task: Task, examples: Sequence[TaskInput], *, is_held_out: bool = True) -> Reference:
    """Run rows through a graph and describe them."""
    raise NotImplementedError


def make_text_reference(tokenize: Callable[[str], Sequence[int]], texts: Sequence[str]) -> Reference:
    """Describe the prompts of a language model."""
    raise NotImplementedError
