"""A recipe's steps, in their order: one walk over them plans, and the same walk runs."""

from __future__ import annotations

from pathlib import Path

from edgesmith.pipeline.base import Made, TargetResult
from edgesmith.recipe import Recipe
from edgesmith.walkers import Walker

__all__ = ["Made", "TargetResult", "walk"]


def walk(recipe: Recipe, folder: Path, walker: Walker, *, against: Path | None = None) -> Made:
    """Go through a recipe's steps in their order.

    Args:
        recipe: What to do.
        folder: The recipe's folder, which its paths are relative to.
        walker: A `Planner` or a `Runner`.
        against: An artifact, or an earlier release, that regressions are judged against.

    Returns:
        What the walker gave for each step.

    Raises:
        UsageError: a file that the recipe names is missing.
        DataError: a row does not fit the task; found before anything is exported.
    """
    from edgesmith.pipeline.graphs import GraphWalk
    from edgesmith.pipeline.language import LanguageWalk

    kind = LanguageWalk if recipe.generates else GraphWalk
    return kind(recipe=recipe, folder=folder, walker=walker, against=against).go()
